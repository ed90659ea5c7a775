//! Comparing a partition because somebody asks for it, not because its turn has come.
//!
//! It is the same comparison as in `anti_entropy`. A node does one at a time; who comes meanwhile waits as long as its
//! request has time. When the time is up in the middle, what was merged stays merged and the reply says so.

use tokio::select;

use super::{Inner, Node, RETRY_AFTER, Request};
use crate::net::message::{Ended, Refusal, RefusalCode, Repair, RepairReply};
use crate::types::{Mono, PartitionId};

impl Node {
    /// Compares a partition of which this node is a primary with every other primary.
    ///
    /// # Errors
    /// When there is no such partition, this node is no primary of it, or another repair took all of the time.
    pub async fn repair(&self, repair: Repair, request: Request) -> Result<RepairReply, Refusal> {
        let inner = &self.inner;
        inner.holds_partition(repair.partition)?;
        let over = inner.late(request);
        let _alone = select! {
            biased;
            alone = inner.repairing.lock() => alone,
            () = inner.io.clock.sleep_until(over.since_origin()) => {
                let message = "this node is repairing another partition; nothing was done: try again";
                return Err(Refusal::new(RefusalCode::Overloaded, message).with_retry_after(RETRY_AFTER));
            }
        };
        inner.dial(inner.preference_of(repair.partition).primaries(), over).await;
        let mut compared = Vec::new();
        let ended = select! {
            biased;
            ended = Box::pin(inner.repair_partition(repair.partition, false, &mut compared)) => ended,
            () = inner.io.clock.sleep_until(over.since_origin()) => Ok(()),
        };
        let failed = compared.iter().any(|compared| matches!(compared.ended, Ended::Failed(_)));
        Ok(RepairReply { compared, trouble: ended.err().filter(|_| !failed) })
    }
}

impl Inner {
    /// When work for a request must end so that its answer comes in time.
    pub(super) fn late(&self, request: Request) -> Mono {
        let now = self.now();
        now + request.deadline.since(now).mul_f64(0.75)
    }

    /// Refuses what is asked of a partition that does not exist, or not here.
    pub(super) fn holds_partition(&self, partition: PartitionId) -> Result<(), Refusal> {
        let q = self.descriptor.partitions.get();
        if partition.0 >= q {
            let message = format!("there is no partition {}: they are numbered 0 to {}", partition.0, q - 1);
            return Err(Refusal::new(RefusalCode::BadRequest, message));
        }
        if self.preference_of(partition).is_primary(self.id) {
            return Ok(());
        }
        let message = format!("{} is not a primary of {partition}", self.id);
        let layouts = super::lock(&self.layouts).history.active().to_vec();
        Err(Refusal { layouts, ..Refusal::new(RefusalCode::WrongLayout, message) })
    }
}
