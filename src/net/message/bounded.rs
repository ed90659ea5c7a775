//! Lists that are bounded while they are read.
//!
//! An item takes some bytes on the wire and some hundreds in memory, so a bound that is looked at once the whole list
//! stands there comes too late: 40 MiB of the smallest reads would be a gigabyte of them, for which nobody has
//! reserved room.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// Reads a list of at most `MAX` items; a longer one is refused at the first item too many.
pub(super) fn up_to<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} items")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            // The length that it claims is believed as far as it may go.
            let mut list = match items.size_hint() {
                Some(len) if len > MAX => {
                    let message = format!("a list of {len} items, at most {MAX} are taken: send several");
                    return Err(A::Error::custom(message));
                }
                // Not more than a few at first: what is claimed has not come.
                len => Vec::with_capacity(len.unwrap_or_default().min(16)),
            };
            while let Some(item) = items.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format!("a list of more than {MAX} items")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::codec;

    #[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
    struct Few(#[serde(deserialize_with = "up_to::<_, _, 3>")] Vec<u8>);

    #[test]
    fn a_list_is_refused_by_its_length_before_its_items_are_read() {
        assert_eq!(codec::decode(&[3, 7, 8, 9]), Ok(Few(vec![7, 8, 9])));
        assert_eq!(codec::decode(&[0]), Ok(Few(Vec::new())));
        let refused = codec::decode::<Few>(&[4]).unwrap_err().to_string();
        assert!(refused.contains("a list of 4 items, at most 3"), "{refused}");
    }
}
