//! Why an operation has no result, by what to do about it.

use std::time::Duration;

use crate::net::message::{Refusal, RefusalCode};

/// Why an operation has no result. Four kinds, told apart by what is known of its effect; [`ClientError::action`]
/// says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The request cannot be made as it is. Nothing was sent. Fix it.
    #[error("{0}")]
    Invalid(String),
    /// A node refused it: the operation did not happen. What passes (overload, too few replicas, …) was tried
    /// again, at other nodes first, before this was returned. `WrongCluster`: only nodes of another cluster are left at
    /// the addresses that the client knows, and nothing was sent to them.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// No node could be reached, or none answered a read in time. Nothing was changed.
    #[error("no node can be reached: {0}")]
    Unreachable(String),
    /// A write was sent, and what became of it is not known: it may be there now, later, or never. Never taken for
    /// failed, never sent again by this client.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The request is wrong and will always be: change it.
    Fix,
    /// Nothing happened, and it may work later: ask again, after this time if one is given.
    TryAgain(Option<Duration>),
    /// Somebody else was there before, or there are too many values: read the key and decide again.
    ReadAgain,
    /// The write may have happened: read the key, or write it again with the same id.
    FindOut,
}

impl ClientError {
    /// What to do about it.
    pub fn action(&self) -> Action {
        match self {
            ClientError::Invalid(_) => Action::Fix,
            ClientError::Refused(refusal) => match refusal.code {
                RefusalCode::Conflict | RefusalCode::TooManySiblings => Action::ReadAgain,
                code if passes(code) => {
                    Action::TryAgain(refusal.retry_after_ms.map(|ms| Duration::from_millis(ms.into())))
                }
                _ => Action::Fix,
            },
            ClientError::Unreachable(_) => Action::TryAgain(None),
            ClientError::Unknown(_) => Action::FindOut,
        }
    }
}

/// A node of another cluster than the client's. Nothing was sent to it.
pub(super) fn other_cluster(reason: &str) -> ClientError {
    let message = format!("{reason}; this client is for another cluster: correct its addresses");
    ClientError::Refused(Refusal::new(RefusalCode::WrongCluster, message))
}

/// Whether what was refused so may be taken by another node, or by the same one later.
pub(super) fn passes(code: RefusalCode) -> bool {
    use RefusalCode as Code;
    match code {
        Code::WrongLayout
        | Code::TooFewReplicas
        | Code::Unavailable
        | Code::DiskFull
        | Code::Corrupt
        | Code::HintsFull
        | Code::Overloaded => true,
        Code::BadRequest
        | Code::UnknownOperation
        | Code::UnsupportedVersion
        | Code::UnsupportedAuth
        | Code::WrongCluster
        | Code::TooLarge
        | Code::BadToken
        | Code::TooManySiblings
        | Code::Conflict => false,
    }
}
