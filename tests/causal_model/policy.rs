//! The rule under test, and three weaker ones that look right.

use ringdove::dynamo::version::{Caps, Dot, LocalCopy, Overwrite, PutDone, Record, Write};
use ringdove::types::{ActorId, Incarnation, Wall};

use super::world::{Node, Policy};

/// Production code: an actor per local copy, ended by restart, removal and a failed append.
pub(crate) struct PerCopy;

impl Policy for PerCopy {
    const EXACT: bool = true;

    fn put(
        node: &mut Node,
        copy: &mut LocalCopy,
        over: Overwrite<'_>,
        write: Write,
    ) -> Result<PutDone, String> {
        copy.put(&mut node.mint, over, write, Wall(0), &Caps::default())
            .map_err(|refused| refused.to_string())
    }

    fn append_failed(node: &mut Node) {
        node.mint.end_all();
    }

    fn restarted(_: &mut Node) {}
}

/// One actor per start of a node, with a count that is kept beside the copies: no dot is ever made twice.
pub(crate) struct PerStart;

impl Policy for PerStart {
    const EXACT: bool = false;

    fn put(
        node: &mut Node,
        copy: &mut LocalCopy,
        over: Overwrite<'_>,
        write: Write,
    ) -> Result<PutDone, String> {
        let actor = ActorId { incarnation: node.mint.incarnation(), epoch: 0 };
        count_on(node, actor, copy, over, write)
    }

    fn append_failed(_: &mut Node) {}

    fn restarted(node: &mut Node) {
        node.counter = 0;
    }
}

/// One actor per start of a node that counts where its copy stands.
pub(crate) struct PerStartCountingInTheCopy;

impl Policy for PerStartCountingInTheCopy {
    const EXACT: bool = false;

    fn put(
        node: &mut Node,
        copy: &mut LocalCopy,
        over: Overwrite<'_>,
        write: Write,
    ) -> Result<PutDone, String> {
        let actor = ActorId { incarnation: node.mint.incarnation(), epoch: 0 };
        node.counter = 0;
        count_on(node, actor, copy, over, write)
    }

    fn append_failed(_: &mut Node) {}

    fn restarted(_: &mut Node) {}
}

/// One actor per node for ever, whose count jumps ahead at a restart, far beyond anything that was lost.
pub(crate) struct JumpAhead;

impl Policy for JumpAhead {
    const EXACT: bool = false;

    fn put(
        node: &mut Node,
        copy: &mut LocalCopy,
        over: Overwrite<'_>,
        write: Write,
    ) -> Result<PutDone, String> {
        let actor = ActorId { incarnation: Incarnation((u64::from(node.id) + 1) << 32), epoch: 0 };
        count_on(node, actor, copy, over, write)
    }

    fn append_failed(_: &mut Node) {}

    fn restarted(node: &mut Node) {
        node.counter += 1_000;
    }
}

/// Makes the next dot of the node's count on this copy, whether or not the copy holds the ones before.
fn count_on(
    node: &mut Node,
    actor: ActorId,
    copy: &mut LocalCopy,
    over: Overwrite<'_>,
    write: Write,
) -> Result<PutDone, String> {
    let told = if let Overwrite::Seen(context) = over { context.get(actor) } else { 0 };
    let mut context = copy.record.context().clone();
    context.include(Dot { actor, counter: node.counter.max(told) });
    copy.record = Record::from_parts(context, copy.record.siblings().to_vec()).map_err(|e| e.to_string())?;
    let done = copy.record.put(over, actor, write, Wall(0), &Caps::default()).map_err(|e| e.to_string())?;
    node.counter = done.dot.counter;
    Ok(done)
}
