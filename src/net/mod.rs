//! The wire: envelope, body codec, messages, connections.
//!
//! ```text
//!   message  what is said: one struct a kind, and the table kind → struct
//!   codec    a struct ⇄ bytes (bincode, the only place that names it), with limits
//!   envelope the fixed part before every body, checksum, extensions; frames here, disk records in storage
//!   frame    envelopes ⇄ a byte stream
//!   parts    large messages in parts, small ones between them
//!   budget   bytes that may be held at a time
//!   link     a connection that was shaken hands over: many requests in flight, answers in any order
//!   serve    the other end: accepts, shakes hands, runs a handler for each request
//!   peers    one link to each other node, redialled when needed
//! ```
//!
//! Client port and peer port speak the same frames; they differ in the messages that they take. Absent: any
//! knowledge of records beyond their type, routing, and retries: a link says whether a request may have reached
//! the other side, and its caller decides.

pub mod budget;
pub mod codec;
pub mod envelope;
pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod link;
pub mod message;
pub mod parts;
pub mod peers;
pub mod serve;
