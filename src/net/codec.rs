//! Bodies: a struct to bytes and back. The only file that names bincode.
//!
//! bincode 2.0.1, `standard` configuration: little-endian, variable-length integers, collections as length and
//! items, enums as their variant's number. Decoding takes at most [`BODY_LEN_MAX`] bytes into memory whatever
//! the lengths inside claim, of a short body at most 1 MiB, and refuses bytes that are left over.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::KeyError;

/// Most bytes that decoding one body may claim: a record of 32 MiB and its bookkeeping.
pub const BODY_LEN_MAX: usize = 40 * 1024 * 1024;

/// Why a body could not be written or read. Nothing was changed; the bytes or the value are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not such a body.
    #[error("malformed body: {0}")]
    Malformed(String),
    /// The bytes are such a body, but for a key that is longer than one may be.
    #[error("{0}")]
    TooLarge(String),
    /// There are more bytes than the body has.
    #[error("malformed body: {0} bytes too many")]
    Trailing(usize),
    /// The value has a form that cannot be written. A bug of the caller.
    #[error("value cannot be encoded: {0}")]
    Unencodable(String),
}

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<BODY_LEN_MAX>,
> = bincode::config::standard().with_limit::<BODY_LEN_MAX>();

/// Appends the value's bytes to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match bincode::serde::encode_into_std_write(value, out, CONFIG) {
        Ok(_) => Ok(()),
        Err(error) => Err(CodecError::Unencodable(error.to_string())),
    }
}

/// A body that is no longer may claim [`SHORT_CLAIM`] alone: nobody reserves room for it (`frame`), and a byte string in
/// it that claims 40 MiB would have them allocated before it is seen that they are not there.
const SHORT_LEN: usize = 64 * 1024;
const SHORT_CLAIM: usize = 16 * SHORT_LEN;
const SHORT: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<SHORT_CLAIM>,
> = bincode::config::standard().with_limit::<SHORT_CLAIM>();
// What claims most for its bytes is a u128 in one byte. So no sound body claims more than it may.
const _: () = assert!(SHORT_CLAIM / SHORT_LEN >= size_of::<u128>());

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    if bytes.len() <= SHORT_LEN {
        bincode::serde::decode_from_slice(bytes, SHORT)
    } else {
        bincode::serde::decode_from_slice(bytes, CONFIG)
    }
}

/// Reads a value that takes up all of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match read(bytes) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok((_, read)) => Err(CodecError::Trailing(bytes.len() - read)),
        Err(error) => Err(refused(&error)),
    }
}

/// Why bytes are no such value, in words that say nothing of how they are read.
fn refused(error: &bincode::error::DecodeError) -> CodecError {
    use bincode::error::DecodeError as Error;
    let words = match error {
        // What a type's own check says.
        Error::OtherString(words) if is_key_too_long(words) => return CodecError::TooLarge(words.clone()),
        Error::OtherString(words) => words,
        Error::Other(words) => *words,
        Error::UnexpectedEnd { .. } => "it ends too soon",
        Error::LimitExceeded => "it claims to be longer than it may be",
        Error::InvalidIntegerType { .. } | Error::OutsideUsizeRange(_) => {
            "a number is too large for its place"
        }
        Error::UnexpectedVariant { .. } => "a choice is none of those there are",
        Error::Utf8 { .. } => "a text is not UTF-8",
        Error::InvalidBooleanValue(_) => "a flag is neither 0 nor 1",
        _ => "its bytes make no sense",
    };
    CodecError::Malformed(words.to_owned())
}

/// serde hands on what a type's check says as text alone, so a key that is too long is known by its words.
fn is_key_too_long(words: &str) -> bool {
    let len = words.split(' ').find_map(|word| word.parse().ok());
    len.is_some_and(|len| KeyError::TooLong { len }.to_string() == words)
}

/// Reads a value that stands at the beginning of `bytes`, whatever follows.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    read(bytes).map(|(value, _)| value).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{KEY_LEN_MAX, Key};
    use bytes::Bytes;

    #[test]
    fn a_length_that_lies_is_refused_without_the_memory_it_claims() {
        // A byte string that claims 2^63 bytes, one that claims a gigabyte, and a vector of as many pairs.
        for claim in [u64::MAX / 2, 1 << 30] {
            let mut lie = vec![253];
            lie.extend_from_slice(&claim.to_le_bytes());
            assert!(matches!(decode::<Bytes>(&lie), Err(CodecError::Malformed(_))));
            assert!(matches!(decode::<Vec<(u64, u64)>>(&lie), Err(CodecError::Malformed(_))));
        }
    }

    #[test]
    fn the_shortest_numbers_and_the_longest_lists_of_a_short_body_are_read() {
        for len in [SHORT_LEN - 5, SHORT_LEN, 3 * SHORT_LEN] {
            let mut bytes = Vec::new();
            let list = vec![7_u128; len - 5];
            encode_into(&list, &mut bytes).unwrap();
            assert!(bytes.len() <= len);
            assert_eq!(decode::<Vec<u128>>(&bytes), Ok(list));
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_in_plain_words() {
        let words = |bytes: &[u8]| decode::<(Key, bool, Option<Bytes>)>(bytes).unwrap_err();
        let malformed = |words: &str| CodecError::Malformed(words.to_owned());
        assert_eq!(words(&[0]), malformed("a key needs at least one byte"));
        assert_eq!(words(&[4, b'd']), malformed("it ends too soon"));
        assert_eq!(words(&[1, b'd', 7]), malformed("a flag is neither 0 nor 1"));
        assert_eq!(words(&[1, b'd', 1, 9]), malformed("a choice is none of those there are"));
        let mut long = Vec::new();
        encode_into(&Bytes::from(vec![7; KEY_LEN_MAX + 1]), &mut long).unwrap();
        let too_long = KeyError::TooLong { len: KEY_LEN_MAX + 1 }.to_string();
        assert_eq!(words(&long), CodecError::TooLarge(too_long));
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = Vec::new();
        encode_into(&7u32, &mut bytes).unwrap();
        assert_eq!(decode::<u32>(&bytes), Ok(7));
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes), Err(CodecError::Trailing(1)));
        assert_eq!(decode_first::<u32>(&bytes), Ok(7));
    }
}
