//! The client port: the binary API over the frames of [`net`](crate::net).

use std::sync::Arc;
use std::time::Duration;

use crate::io::{BoxFuture, Listener};
use crate::net::envelope::Frame;
use crate::net::message::{
    ChangeMembers, Explain, Get, GetLayout, Hello, Hints, Message, MultiGet, MultiPut, Ping, Pong, Put,
    Reaping, Refusal, Repair, Scan, Status, Trees, Welcome, is_spoken,
};
use crate::net::serve::{Service, answer, refuse, serve, unknown_operation};
use crate::node::Node;
use crate::node::metrics::Door;
use crate::types::Mono;

struct ClientService {
    node: Node,
}

/// Serves clients on `port` until the node stops.
pub async fn serve_clients(node: Node, port: Box<dyn Listener>) {
    let (clock, limits, stop) = (node.io().clock.clone(), node.config().limits, node.stopping());
    let load = node.port_load(Door::Binary).expect("it is a port");
    serve(port, Arc::new(ClientService { node }), clock, limits, load, stop).await;
}

impl ClientService {
    async fn answer(&self, frame: &Frame, received: Mono) -> Result<Frame, Refusal> {
        let node = &self.node;
        let request = || {
            let remaining = Duration::from_millis(frame.head.remaining_ms.into());
            node.request_of(Door::Binary, received, Some(remaining), frame.head.trace_id)
        };
        Ok(match frame.head.kind {
            kind if !is_spoken(kind, frame.head.version) => unknown_operation(frame, kind),
            Get::KIND => answer(frame, &node.get(read(frame)?, request()?).await?),
            Put::KIND => {
                let put: Put = read(frame)?;
                answer(frame, &node.put(Put { forwarded: false, ..put }, request()?).await?)
            }
            MultiGet::KIND => answer(frame, &node.multi_get(read(frame)?, request()?).await?),
            MultiPut::KIND => {
                let mut batch: MultiPut = read(frame)?;
                batch.puts.iter_mut().for_each(|put| put.forwarded = false);
                answer(frame, &node.multi_put(batch, request()?).await?)
            }
            Scan::KIND => answer(frame, &node.scan(read(frame)?, request()?).await?),
            GetLayout::KIND => answer(frame, &node.layouts()),
            Ping::KIND => answer(frame, &Pong),
            Status::KIND => answer(frame, &node.status()),
            Hints::KIND => answer(frame, &node.hints()),
            Explain::KIND => answer(frame, &node.explain(read(frame)?, request()?).await?),
            Trees::KIND => answer(frame, &node.trees(read(frame)?).await?),
            Repair::KIND => answer(frame, &node.repair(read(frame)?, request()?).await?),
            ChangeMembers::KIND => answer(frame, &node.change_members(read(frame)?).await?),
            Reaping::KIND => answer(frame, &node.reaping()),
            kind => unknown_operation(frame, kind),
        })
    }
}

/// The message of a frame.
///
/// # Errors
/// When it is malformed.
fn read<M: Message>(frame: &Frame) -> Result<M, Refusal> {
    M::from_frame(frame).map_err(Refusal::from)
}

impl Service for ClientService {
    fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal> {
        self.node.greet(hello, version)
    }

    fn handle(self: Arc<Self>, request: Frame, received: Mono) -> BoxFuture<'static, Frame> {
        Box::pin(async move {
            let answered = self.answer(&request, received).await;
            let mut frame = answered.unwrap_or_else(|refusal| refuse(&request, &refusal));
            frame.head.layout = self.node.layout().reference();
            frame
        })
    }
}
