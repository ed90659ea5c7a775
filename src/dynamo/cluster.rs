//! What all nodes of a cluster agree on for ever: made once, kept in every data directory, compared in every
//! handshake.

use serde::{Deserialize, Serialize};

use super::layout::LayoutError;
use super::ring::{HASH_NAME, PartitionCount};
use super::version::TokenSecret;
use crate::types::ClusterId;

/// The cluster descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDescriptor {
    /// Random, for ever.
    pub cluster: ClusterId,
    /// Partitions of the ring (Q).
    pub partitions: PartitionCount,
    /// Primaries of each partition (N).
    pub replicas: u32,
    /// Name of the hash that places keys on the ring; this build knows [`HASH_NAME`] alone.
    pub hash: String,
    /// Key of the Merkle trees' leaf hashes, so that no client can make two keys cancel out.
    pub merkle_key: [u8; 16],
    /// Seals context tokens.
    pub token_secret: TokenSecret,
}

/// Why a descriptor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Another build made it, with a hash that this one does not have.
    #[error(
        "the cluster places keys by {0:?}, this build knows only {HASH_NAME:?}: use the build that made it"
    )]
    UnknownHash(String),
    /// Q or N is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl ClusterDescriptor {
    /// A descriptor of a new cluster from 64 fresh random bytes.
    pub fn new(partitions: PartitionCount, replicas: u32, random: &[u8; 64]) -> ClusterDescriptor {
        let (id, rest) = random.split_first_chunk::<16>().expect("64 bytes");
        let (merkle_key, secret) = rest.split_first_chunk::<16>().expect("48 bytes");
        ClusterDescriptor {
            cluster: ClusterId(u128::from_le_bytes(*id)),
            partitions,
            replicas,
            hash: HASH_NAME.to_owned(),
            merkle_key: *merkle_key,
            token_secret: TokenSecret(secret.try_into().expect("32 bytes")),
        }
    }

    /// Whether this build can work with it.
    ///
    /// # Errors
    /// When it was made with a hash that this build does not know.
    pub fn check(&self) -> Result<(), DescriptorError> {
        if self.hash == HASH_NAME { Ok(()) } else { Err(DescriptorError::UnknownHash(self.hash.clone())) }
    }
}
