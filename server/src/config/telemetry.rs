//! `[telemetry]`: the collector of traces.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_spanned::Spanned;

use super::{
    Checker, hooks,
    raw::Text,
    text::{self, Read},
};

/// Path for traces, by OTLP.
const TRACES: &str = "/v1/traces";

/// The longest URL.
const MAX_URL_BYTES: usize = 2048;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTelemetry {
    otlp_endpoint: Text,
    service_name: Option<Text>,
    ca_file: Option<Spanned<PathBuf>>,
}

/// The collector of traces, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// The collector's URL, without a slash at its end.
    endpoint: String,
    /// Service name in the traces.
    pub service_name: String,
    /// File with the certificate authorities of an `https://` collector; the system's if unset.
    pub ca_file: Option<PathBuf>,
}

impl TelemetryConfig {
    /// The collector's URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The URL for traces.
    pub fn traces_url(&self) -> String {
        format!("{}{TRACES}", self.endpoint)
    }

    /// Whether the URL is `https://`.
    pub fn is_secure(&self) -> bool {
        self.endpoint.starts_with("https://")
    }
}

impl RawTelemetry {
    pub(super) fn check(&self, c: &mut Checker, base: &Path) -> Option<TelemetryConfig> {
        let endpoint = c.ok(self.otlp_endpoint.span(), endpoint(self.otlp_endpoint.get_ref()));
        let service_name = match &self.service_name {
            Some(name) => c.ok(name.span(), text::name(name.get_ref(), 64)).map(|()| name.get_ref().clone()),
            None => Some("ringfence".to_owned()),
        };
        let plain = endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
        let ca_file = hooks::ca_file(c, self.ca_file.as_ref(), plain, base);
        Some(TelemetryConfig { endpoint: endpoint?, service_name: service_name?, ca_file })
    }
}

/// The base URL of a collector.
fn endpoint(text: &str) -> Read<String> {
    let odd = |what: String| {
        let help = "write the base URL of a collector for OTLP over HTTP, such as \"http://127.0.0.1:4318\"";
        Err((what, help.to_owned()))
    };
    let url = match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && text.len() <= MAX_URL_BYTES => url,
        Ok(_) => return odd(format!("{text:?} is not the URL of a collector")),
        Err(error) => return odd(format!("{text:?} is not a URL: {error}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return odd(
            "a user or password in a URL is not supported; set a header with OTEL_EXPORTER_OTLP_HEADERS".to_owned()
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return odd(format!("{text:?} has a query or fragment"));
    }
    if url.port() == Some(4317) {
        return odd(format!("{text:?} has the port of OTLP over gRPC"));
    }
    let base = url.as_str().trim_end_matches('/');
    if base.ends_with(TRACES) {
        return odd(format!("{text:?} must not end with {TRACES}, which is added automatically"));
    }
    Ok(base.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        for (good, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
            ("https://otlp.example/team/", "https://otlp.example/team"),
            ("http://[::1]:4318/", "http://[::1]:4318"),
        ] {
            assert_eq!(endpoint(good).unwrap(), url);
        }
        for odd in [
            "",
            "127.0.0.1:4318",
            "grpc://a:1",
            "http://",
            "http://u:p@a/",
            "http://a/?k",
            "http://a/#b",
            "http://a:4317",
            "http://a/v1/traces",
        ] {
            assert!(endpoint(odd).is_err(), "{odd}");
        }
    }
}
