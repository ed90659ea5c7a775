//! Lines of an input, one at a time, of bounded length.

use std::io::BufRead;

use crate::event::{InputError, InputErrorKind};
use crate::formats::EVENT_BYTES_MAX;

/// Splits an input into lines and counts them.
pub(crate) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    /// The number of the line in `line`, from 1.
    pub(crate) number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Lines { input, line: Vec::new(), number: 0 }
    }

    /// An error in the current line.
    pub(crate) fn error(&self, column: usize, kind: InputErrorKind) -> InputError {
        InputError { line: self.number, column: column as u64, kind }
    }

    /// Reads the next line; false at the end. It can then be had from [`Lines::text`].
    pub(crate) fn advance(&mut self) -> Result<bool, InputError> {
        self.line.clear();
        self.number += 1;
        let mut any = false;
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.error(1, error.into())),
            };
            if available.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = memchr::memchr(b'\n', available);
            let taken = end.unwrap_or(available.len());
            if self.line.len() + taken > EVENT_BYTES_MAX {
                return Err(self.error(1, InputErrorKind::TooLong { limit: EVENT_BYTES_MAX }));
            }
            self.line.extend_from_slice(&available[..taken]);
            self.input.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    /// Whether the current line has nothing but blanks.
    pub(crate) fn is_blank(&self) -> bool {
        self.line.trim_ascii().is_empty()
    }

    /// The current line, without its end.
    pub(crate) fn text(&self) -> Result<&str, InputError> {
        let text = std::str::from_utf8(&self.line).map_err(|error| {
            self.error(error.valid_up_to() + 1, InputErrorKind::Syntax("not UTF-8".to_owned()))
        })?;
        Ok(text.strip_suffix('\r').unwrap_or(text))
    }
}
