//! Tables of a configuration file with certificate, key and certificate authorities.

use std::path::{Path, PathBuf};

use ringfence_drivers::tls::TlsFiles;
use serde::Deserialize;

/// Certificate, key and trusted certificate authorities.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl RawTls {
    /// The files; relative paths are relative to `base`.
    pub fn files(&self, base: &Path) -> TlsFiles {
        TlsFiles { cert: base.join(&self.cert), key: base.join(&self.key), ca: base.join(&self.ca) }
    }
}
