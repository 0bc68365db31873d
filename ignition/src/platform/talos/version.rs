//! Releases of Talos, and what each wants a config to say.

use std::fmt;
use std::str::FromStr;

use netboot::net::Malformed;

/// A release of Talos: `v1.11.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    contract: Contract,
    patch: u16,
}

/// What a minor release reads: siderolabs/talos calls it the version contract (pkg/machinery/config/contract.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contract {
    /// 1.9.
    V1_9,
    /// 1.10: a new installation on UEFI boots a unified kernel image, which ignores kernel arguments of the config.
    V1_10,
    /// 1.11.
    V1_11,
    /// 1.12: the network, the name and the clock are documents of their own.
    V1_12,
}

impl Contract {
    /// Every contract, oldest first.
    pub const ALL: [Self; 4] = [Self::V1_9, Self::V1_10, Self::V1_11, Self::V1_12];

    /// The second part of its releases' numbers.
    #[must_use]
    pub fn minor(self) -> u16 {
        match self {
            Self::V1_9 => 9,
            Self::V1_10 => 10,
            Self::V1_11 => 11,
            Self::V1_12 => 12,
        }
    }

    /// Whether the network, the name and the clock are documents beside the machine config.
    #[must_use]
    pub fn has_documents(self) -> bool {
        self >= Self::V1_12
    }

    /// The minor versions of Kubernetes 1 that it runs, oldest and newest
    /// (siderolabs/talos, pkg/machinery/compatibility/talos19 to talos112).
    #[must_use]
    pub fn kubernetes(self) -> (u16, u16) {
        match self {
            Self::V1_9 => (27, 32),
            Self::V1_10 => (28, 33),
            Self::V1_11 => (29, 34),
            Self::V1_12 => (30, 35),
        }
    }
}

impl Version {
    /// What it reads.
    #[must_use]
    pub fn contract(self) -> Contract {
        self.contract
    }
}

impl FromStr for Version {
    type Err = Malformed;

    /// Takes `1.11.2` and `v1.11.2`.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let refused = || {
            Malformed::new(
                "Talos release",
                text,
                "write one of 1.9 to 1.12 in full, such as v1.11.2",
            )
        };
        let [major, minor, patch] = numbers(text).ok_or_else(refused)?;
        let contract = Contract::ALL
            .into_iter()
            .find(|contract| major == 1 && contract.minor() == minor);
        Ok(Self {
            contract: contract.ok_or_else(refused)?,
            patch,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "v1.{}.{}", self.contract.minor(), self.patch)
    }
}

/// The three numbers of `1.2.3` or `v1.2.3`, and nothing else.
pub(super) fn numbers(text: &str) -> Option<[u16; 3]> {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    let mut next = || {
        let part = parts.next()?;
        let plain = part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| plain)
    };
    let three = [next()?, next()?, next()?];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_releases_from_1_9_to_1_12_are_taken() {
        for text in ["1.9.0", "v1.10.7", "v1.12.1"] {
            let version: Version = text.parse().unwrap();
            assert_eq!(
                version.to_string().trim_start_matches('v'),
                text.trim_start_matches('v')
            );
        }
        for text in [
            "",
            "1.8.4",
            "1.13.0",
            "2.9.0",
            "1.9",
            "v1.12.0-beta.1",
            "1.+9.0",
            "1.9.0.1",
            "latest",
        ] {
            let refused = text.parse::<Version>().unwrap_err();
            assert!(refused.to_string().contains("1.9 to 1.12"), "{text}");
        }
    }
}
