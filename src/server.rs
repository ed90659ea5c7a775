//! The client port: the binary API over the frames of [`net`](crate::net).

use std::sync::Arc;
use std::time::Duration;

use crate::io::{BoxFuture, Listener};
use crate::net::codec::CodecError;
use crate::net::envelope::Frame;
use crate::net::message::{
    Get, GetLayout, Hello, LayoutReply, Message, Ping, Pong, Put, Refusal, RefusalCode, Welcome,
};
use crate::net::serve::{Service, answer, refuse, serve, unknown_operation};
use crate::node::Node;

struct ClientService {
    node: Node,
}

/// Serves clients on `port` until the node stops.
pub async fn serve_clients(node: Node, port: Box<dyn Listener>) {
    let (clock, limits, stop) = (node.io().clock.clone(), node.config().limits, node.stopping());
    serve(port, Arc::new(ClientService { node }), clock, limits, stop).await;
}

impl ClientService {
    async fn answer(&self, frame: &Frame) -> Result<Frame, Refusal> {
        let malformed = |error: CodecError| Refusal::new(RefusalCode::BadRequest, error.to_string());
        let request = || {
            let remaining = Duration::from_millis(frame.head.remaining_ms.into());
            self.node.request(Some(remaining), frame.head.trace_id)
        };
        match frame.head.kind {
            Get::KIND => {
                let get = Get::from_frame(frame).map_err(malformed)?;
                Ok(answer(&self.node.get(get, request()?).await?))
            }
            Put::KIND => {
                let put = Put::from_frame(frame).map_err(malformed)?;
                Ok(answer(&self.node.put(Put { forwarded: false, ..put }, request()?).await?))
            }
            GetLayout::KIND => Ok(answer(&LayoutReply { active: self.node.active_layouts() })),
            Ping::KIND => Ok(answer(&Pong)),
            kind => Ok(unknown_operation(kind)),
        }
    }
}

impl Service for ClientService {
    fn greet(&self, hello: &Hello, version: u8) -> Result<Welcome, Refusal> {
        self.node.greet(hello, version)
    }

    fn handle(self: Arc<Self>, request: Frame) -> BoxFuture<'static, Frame> {
        Box::pin(async move {
            let answered = self.answer(&request).await;
            let mut frame = answered.unwrap_or_else(|refusal| refuse(refusal.code, refusal.message));
            frame.head.layout = self.node.layout().reference();
            frame
        })
    }
}
