//! Cross-origin protection of every request: rejects CSRF and DNS rebinding, and forbids framing.
//!
//! The API listens on loopback, by default without authentication, so any page that an operator visits could send
//! actions from the operator's browser. Invariants: a cross-site action of a browser is rejected, by `Sec-Fetch-Site`
//! or by an `Origin` that differs from `Host`; a `Host` that is a name other than `localhost` is rejected (DNS
//! rebinding: a site that resolves to 127.0.0.1 would be the same origin) unless the connection uses TLS, where the
//! certificate prevents that; every answer has headers that forbid framing, sniffing and foreign scripts. Alternative
//! considered: tokens in forms (they protect forms only, and the API accepts JSON).

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ringfence_messages::Code;
use ringfence_service::listen::Peer;

use super::errors::Failure;

/// Headers of every answer.
const HEADERS: [(header::HeaderName, &str); 5] = [
    // No browser or proxy stores the inventory on disk; assets override this header.
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
];

pub(super) async fn check(request: Request, next: Next) -> Response {
    let secure = request.extensions().get::<Peer>().is_some_and(|peer| peer.secure);
    let mut response = match refusal(request.method(), request.headers(), secure) {
        Some(why) => Failure::with(StatusCode::FORBIDDEN, Code::INVALID_ARGUMENT, why).into_response(),
        None => next.run(request).await,
    };
    add_security_headers(&mut response);
    response
}

/// Adds the headers of every answer.
pub(super) fn add_security_headers(response: &mut Response) {
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// The reason for rejecting a request, if any.
fn refusal(method: &Method, headers: &HeaderMap, secure: bool) -> Option<String> {
    let text = |name: header::HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(&*host, |(name, port)| if port.ends_with(']') { &host } else { name });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if !secure && !host.is_empty() && bare != "localhost" && bare.parse::<std::net::IpAddr>().is_err() {
        return Some(format!("header Host is {host:.80}; use an IP address or localhost in the URL"));
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return None;
    }
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    if site.as_deref().is_some_and(|site| site != "same-origin" && site != "none") {
        return Some("cross-site action".to_owned());
    }
    let origin = text(header::ORIGIN)?;
    let same = origin.split_once("://").is_some_and(|(_, of)| of == host);
    (!same).then(|| format!("cross-site action from {origin:.80}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_site_actions_and_rebound_names_are_rejected() {
        let refused = |method: Method, headers: &[(&'static str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
            refusal(&method, &headers.collect(), false).is_some()
        };
        let host = ("host", "127.0.0.1:7080");
        for ok in ["127.0.0.1:7080", "localhost:7080", "localhost", "[::1]:7080", "[::1]", "10.0.0.1"] {
            assert!(!refused(Method::GET, &[("host", ok)]), "{ok}");
        }
        for bad in ["evil.example:7080", "evil.example", "localhost.evil.example:7080"] {
            assert!(refused(Method::GET, &[("host", bad)]), "{bad}");
        }
        let named = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("controller.example:7080"))]);
        assert_eq!(refusal(&Method::GET, &named, true), None, "the certificate proves the name");
        assert!(!refused(Method::POST, &[host]), "a script");
        assert!(!refused(
            Method::POST,
            &[host, ("origin", "http://127.0.0.1:7080"), ("sec-fetch-site", "same-origin")]
        ));
        assert!(refused(Method::POST, &[host, ("origin", "http://evil.example")]));
        assert!(refused(Method::POST, &[host, ("origin", "null")]));
        assert!(refused(Method::POST, &[host, ("origin", "http://127.0.0.1:8080")]), "another port is another origin");
        for site in ["cross-site", "same-site"] {
            assert!(refused(Method::POST, &[host, ("sec-fetch-site", site)]), "{site}");
        }
        assert!(!refused(Method::GET, &[host, ("sec-fetch-site", "cross-site")]), "a link to it");
    }
}
