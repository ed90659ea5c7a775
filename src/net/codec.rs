//! Bodies: a struct to bytes and back. The only file that names bincode.
//!
//! bincode 2.0.1, `standard` configuration: little-endian, variable-length integers, collections as length and
//! items, enums as their variant's number. Decoding takes at most [`BODY_LEN_MAX`] bytes into memory whatever
//! the lengths inside claim, and refuses bytes that are left over.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes that decoding one body may claim: a record of 32 MiB and its bookkeeping.
pub const BODY_LEN_MAX: usize = 40 * 1024 * 1024;

/// Why a body could not be written or read. Nothing was changed; the bytes or the value are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not such a body.
    #[error("malformed body: {0}")]
    Malformed(String),
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

/// Reads a value that takes up all of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok((_, read)) => Err(CodecError::Trailing(bytes.len() - read)),
        Err(error) => Err(CodecError::Malformed(error.to_string())),
    }
}

/// Reads a value that stands at the beginning of `bytes`, whatever follows.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let read = bincode::serde::decode_from_slice(bytes, CONFIG);
    read.map(|(value, _)| value).map_err(|error| CodecError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn bytes_left_over_are_refused() {
        let mut bytes = Vec::new();
        encode_into(&7u32, &mut bytes).unwrap();
        assert_eq!(decode::<u32>(&bytes), Ok(7));
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes), Err(CodecError::Trailing(1)));
        assert_eq!(decode_first::<u32>(&bytes), Ok(7));
    }
}
