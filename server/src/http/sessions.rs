//! Sessions of browsers.
//!
//! Invariants: the cookie discloses nothing of the token: it is a random number, stored only as SHA-256, which
//! expires after [`LASTS`], at the sign-out, and with the controller. Browsers send cookies to every port of a host,
//! so other servers on the controller's machine see them. Alternatives considered: the token as cookie (it never
//! expires), signed cookies (they cannot be revoked).

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Life of a session. Too low: an operator signs in twice in a shift. Too high: a stolen cookie stays valid for long.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3600);

/// Largest number of sessions; the oldest is evicted. Too low: users sign each other out. Too high: memory for a
/// client with a token that signs in without end.
const MAX_SESSIONS: usize = 1000;

type Hash = [u8; 32];

/// The sessions of a controller.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<Hash, Session>>>);

#[derive(Debug)]
struct Session {
    began: Instant,
    token: Hash,
}

fn hash(of: &str) -> Hash {
    Sha256::digest(of.as_bytes()).into()
}

impl Sessions {
    /// Starts a session for the token with this hash. Returns its id, for the cookie.
    pub(super) fn begin(&self, token: Hash) -> String {
        let id = hex::encode(rand::rng().random::<[u8; 32]>());
        let mut sessions = self.0.lock();
        sessions.retain(|_, of| of.began.elapsed() < LASTS);
        if sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, of)| of.began).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&id), Session { began: Instant::now(), token });
        id
    }

    /// The hash of a session's token; none after its end.
    pub(super) fn token(&self, id: &str) -> Option<Hash> {
        self.0.lock().get(&hash(id)).filter(|of| of.began.elapsed() < LASTS).map(|of| of.token)
    }

    /// Ends a session.
    pub(super) fn end(&self, id: &str) {
        self.0.lock().remove(&hash(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn session_ends_by_age_sign_out_and_eviction() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.begin([1; 32]), sessions.begin([2; 32]));
        assert_eq!((sessions.token(&first), sessions.token(&second)), (Some([1; 32]), Some([2; 32])));
        assert_eq!(sessions.token("none"), None);
        sessions.end(&first);
        assert_eq!(sessions.token(&first), None);
        tokio::time::advance(LASTS).await;
        assert_eq!(sessions.token(&second), None);
        let oldest = sessions.begin([3; 32]);
        for _ in 0..MAX_SESSIONS {
            tokio::time::advance(Duration::from_millis(1)).await;
            sessions.begin([4; 32]);
        }
        assert_eq!((sessions.token(&oldest), sessions.0.lock().len()), (None, MAX_SESSIONS));
    }
}
