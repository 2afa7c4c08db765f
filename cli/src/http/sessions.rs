//! Who signed in with a browser, and until when.
//!
//! Invariants: what a browser carries says nothing of the token: it is a number of its own, known here by its SHA-256 alone,
//! which ends after [`LASTS`], at the sign-out, and with the controller. A browser sends its cookies to every port of a host,
//! so that another server on the controller's machine sees what is in them.
//! Rejected: the token as the cookie (it never ends), and signed cookies (they cannot be taken back).

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How long a browser stays signed in. Too low: a shift signs in twice. Too high: a cookie that was stolen is good for so long.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3600);

/// Sessions at a time; the oldest ends for the next one. Too low: people sign each other out. Too high: memory for whoever has a
/// token and signs in without end.
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
    /// Begins one for the bearer of the token with this hash; its id goes into a cookie.
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

    /// The hash of the token that began it; none once it ended.
    pub(super) fn token(&self, id: &str) -> Option<Hash> {
        self.0.lock().get(&hash(id)).filter(|of| of.began.elapsed() < LASTS).map(|of| of.token)
    }

    /// Ends one.
    pub(super) fn end(&self, id: &str) {
        self.0.lock().remove(&hash(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_its_time_at_the_sign_out_and_for_newer_ones() {
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
