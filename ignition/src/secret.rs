//! A value that nothing prints, stores or sends by accident.
//!
//! A [`Secret`] has no `Display` and no `Serialize`, and its `Debug` says that there is one. It is read by
//! [`Secret::expose`] alone, so that a search for that word finds every room that handles what would open a cluster.
//! Its bytes are overwritten when it is dropped.
//!
//! Ugly fact: only what the secret itself holds is overwritten. What `expose` was copied into, a document say, is not.

use std::fmt;

use zeroize::Zeroize;

/// A value that opens something: a private key, a token, a document that holds one.
///
/// ```
/// let token = ignition::secret::Secret::new("k7x2pq".to_owned());
/// assert_eq!(format!("{token:?}"), "Secret(..)");
/// assert_eq!(token.expose(), "k7x2pq");
/// ```
///
/// It cannot be printed:
/// ```compile_fail
/// println!("{}", ignition::secret::Secret::new(String::new()));
/// ```
///
/// Nor can it be written into JSON or YAML:
/// ```compile_fail
/// serde_json::to_string(&ignition::secret::Secret::new(String::new()));
/// ```
#[derive(Clone)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the value in. Whoever made it should keep no copy.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for whoever writes it to where it is meant to be.
    #[must_use]
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<String> {
    /// The same as bytes, still a secret.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<Vec<u8>> {
        Secret::new(self.0.clone().into_bytes())
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Secret(..)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_names_no_part_of_the_value_even_inside_others() {
        let inside = Some(vec![Secret::new("k7x2pq".to_owned())]);
        assert_eq!(format!("{inside:?}"), "Some([Secret(..)])");
    }

    #[test]
    fn the_value_is_overwritten_when_it_is_dropped() {
        struct Witness<'a>(&'a std::cell::Cell<bool>);
        impl Zeroize for Witness<'_> {
            fn zeroize(&mut self) {
                self.0.set(true);
            }
        }
        let overwritten = std::cell::Cell::new(false);
        let secret = Secret::new(Witness(&overwritten));
        assert!(!overwritten.get());
        drop(secret);
        assert!(overwritten.get());
    }
}
