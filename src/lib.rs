//! ringdove (architecture page to come with the shell)

pub mod dynamo;
pub mod io;
pub mod types;
