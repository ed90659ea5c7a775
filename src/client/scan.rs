//! Ranges of keys, page by page.

use std::time::Duration;

use futures_util::Stream;

use super::attempts::Kind;
use super::routes::Target;
use super::{Client, ClientError, Refusal, RefusalCode, Scan, ScanItem, ScanReply};
use crate::types::TraceId;

const PAUSE: Duration = Duration::from_millis(200);

/// The pages of a scan, asked for one at a time. It can be dropped at any point, and another begun later with the
/// last page's cursor as its `after`.
pub struct Pages {
    client: Client,
    scan: Scan,
    /// One for all pages.
    trace_id: TraceId,
    done: bool,
}

impl Client {
    /// A scan as [`Scan`] says, from its `after` on.
    pub fn scan(&self, scan: Scan) -> Pages {
        Pages { client: self.clone(), scan, trace_id: self.inner.pool.trace_id(), done: false }
    }
}

impl Pages {
    /// The next page; none behind the last. A page may be short, or have no item at all, with more to come. It has the
    /// time of one operation.
    ///
    /// # Errors
    /// `TooFewReplicas` when a partition cannot be read, unless the scan is `partial`: nothing was passed over, and
    /// the same page may be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<ScanReply>, ClientError> {
        if self.done {
            return Ok(None);
        }
        let inner = &self.client.inner;
        let mut tries = inner.config.tries.max(1);
        loop {
            let asked = inner.asked(None, self.trace_id);
            let page: ScanReply = inner.run(Kind::Read, Target::Anyone, &self.scan, asked).await?;
            let moved = page.cursor.is_some() && page.cursor != self.scan.after;
            if moved || !page.more {
                self.scan.after = page.cursor.clone();
                self.done = !page.more;
                return Ok(Some(page));
            }
            // It stands before a key that it cannot read.
            tries -= 1;
            if tries == 0 {
                let missing: Vec<String> = page.missing.iter().take(8).map(ToString::to_string).collect();
                let more = if page.missing.len() > 8 { ", …" } else { "" };
                let message = format!(
                    "{} partition(s) cannot be read: {}{more}; the scan has not passed them",
                    page.missing.len(),
                    missing.join(", ")
                );
                return Err(ClientError::Refused(Refusal::new(RefusalCode::TooFewReplicas, message)));
            }
            inner.pool.sleep_until(inner.pool.now() + inner.pool.jittered(PAUSE)).await;
        }
    }

    /// The items of all pages, one after the other. Ends after the first error.
    pub fn items(self) -> impl Stream<Item = Result<ScanItem, ClientError>> {
        let state = Some((self, Vec::new().into_iter()));
        futures_util::stream::unfold(state, |state| async {
            let (mut pages, mut items) = state?;
            loop {
                if let Some(item) = items.next() {
                    return Some((Ok(item), Some((pages, items))));
                }
                match pages.next_page().await {
                    Ok(Some(page)) => items = page.items.into_iter(),
                    Ok(None) => return None,
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
    }
}
