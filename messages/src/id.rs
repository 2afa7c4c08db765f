//! Typed uuids: the compiler rejects a host's id in the place of a VM's id.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The namespace of ids that are derived from names: uuid v5 of `ringfence` in the OID namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x6ed1_81e4_7690_588f_b208_1af5_3501_ae88);

/// A text that is not a uuid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not the uuid of a {}: expected 32 hex digits, with or without dashes", self.text, self.kind)
    }
}

impl std::error::Error for ParseIdError {}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub struct $name(pub Uuid);

        impl $name {
            /// The id of an object without a configured uuid: uuid v5 of kind and name, the same on every run and
            /// machine.
            pub fn from_name(name: &str) -> Self {
                Self(Uuid::new_v5(&NAMESPACE, format!("{}/{name}", $kind).as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", $kind, self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| ParseIdError { kind: $kind, text: text.chars().take(64).collect() })
            }
        }
    )*};
}

ids! {
    /// A cluster: hosts that share storage; VMs fail over within their cluster.
    ClusterId = "cluster";
    /// A host that runs VMs.
    HostId = "host";
    /// A primary storage.
    StorageId = "storage";
    /// A virtual machine.
    VmId = "vm";
    /// A volume of a virtual machine.
    VolumeId = "volume";
}
