//! The REST gateway: keys, batches and scans over HTTP, health, and what the node counts.
//!
//! ```text
//!   socket ─▶ connection ─▶ routes ─▶ params, body ─▶ kv │ batch │ scan ─▶ the node ─▶ json, answer
//!             (limits)                        explain │ health │ metrics
//! ```
//! docs/REST.md is the reference for users. In short: `/kv/{key}` takes GET, HEAD, PUT and DELETE; `Ringdove-Context` carries
//! the context token both ways; several values are answered with 300 and all of them; every error is JSON that says
//! whether the request was applied.
//!
//! Everything is bounded: connections, the head of a request and the time for it, the length of a body, the time
//! between two pieces of it and for all of it, the bytes of all bodies that are held at once, the time that a client may
//! leave its answer lying. A request that is turned away for any of that was not applied.
//!
//! Deliberately absent: any decision about quorums, versions or time, which are the node's; TLS and authentication.
//! Production only: under the simulator this module does not exist.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use tokio::sync::Semaphore;

use crate::measure::Counter;
use crate::net::budget::Budget;
use crate::net::serve::Limits;
use crate::node::Node;

use answer::error;
pub(crate) use explain::{explain_json, state_word};

mod answer;
mod batch;
mod body;
mod connection;
mod explain;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod json;
mod kv;
mod metrics;
mod params;
mod scan;

/// Bounds of the gateway. Sizes of values and times of requests are the node's.
#[derive(Debug, Clone, Copy)]
pub struct GatewayConfig {
    /// Connections at once; further ones are answered 503 and closed. Default 10,000.
    pub connections_max: usize,
    /// A connection that has not sent a whole request head for this long is closed, also one that is idle between
    /// two requests. Default 60 s.
    pub head_time_max: Duration,
    /// The longest pause between two pieces of a request's body, and the longest that a client may take nothing of
    /// its answer. Default 20 s.
    pub stall_after: Duration,
    /// Time for the whole body of a request. Default 120 s, above `stall_after`.
    pub body_time_max: Duration,
    /// Bytes of request bodies and of answers that are held at once; what finds no room is answered 503. Some tens of
    /// the longest value at least. Default 256 MiB.
    pub held_bytes_max: usize,
    /// How long requests in progress may take after the stop signal. Default 5 s; `serve` gives it that of the other
    /// ports.
    pub drain: Duration,
}

impl Default for GatewayConfig {
    /// As on the client port, where that has the same bound.
    fn default() -> GatewayConfig {
        let limits = Limits::default();
        GatewayConfig {
            connections_max: limits.connections_max,
            head_time_max: Duration::from_secs(60),
            stall_after: limits.stall_after,
            body_time_max: Duration::from_secs(120),
            held_bytes_max: limits.request_bytes_max,
            drain: limits.drain,
        }
    }
}

/// What all requests share.
struct Gateway {
    node: Node,
    config: GatewayConfig,
    /// For bytes of bodies and answers.
    budget: Arc<Budget>,
    /// For connections.
    places: Arc<Semaphore>,
    counts: Counts,
}

/// What the gateway counts besides the node.
struct Counts {
    /// Answers by status, from 100 to 599.
    responses: Vec<Counter>,
    /// Connections turned away.
    connections_refused: Counter,
    /// Requests turned away because too many bytes are held.
    memory_refused: Counter,
}

impl Gateway {
    fn new(node: Node, config: GatewayConfig) -> Gateway {
        let counts = Counts {
            responses: (100..600).map(|_| Counter::default()).collect(),
            connections_refused: Counter::default(),
            memory_refused: Counter::default(),
        };
        Gateway {
            node,
            config,
            budget: Budget::new(config.held_bytes_max),
            places: connection::places(config.connections_max),
            counts,
        }
    }
}

type App = State<Arc<Gateway>>;

/// Serves HTTP on `listener` until the node stops, then lets requests in progress end.
pub async fn serve_rest(node: Node, listener: tokio::net::TcpListener, config: GatewayConfig) {
    let gateway = Arc::new(Gateway::new(node, config));
    let routes = routes(gateway.clone());
    connection::accept(gateway, listener, routes).await;
}

fn routes(gateway: Arc<Gateway>) -> Router {
    let no_key = async || error(StatusCode::BAD_REQUEST, "bad-request", "a key needs at least one byte");
    Router::new()
        .route("/kv/{key}", get(kv::read).put(kv::write).delete(kv::remove))
        .route("/kv/", axum::routing::any(no_key))
        .route("/kv/{key}/{*rest}", axum::routing::any(kv::slash))
        .route("/batch", post(batch::batch))
        .route("/scan", get(scan::scan))
        .route("/explain/{key}", get(explain::explain))
        .route("/explain/", axum::routing::any(no_key))
        .route("/explain/{key}/{*rest}", axum::routing::any(kv::slash))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nowhere)
        .layer(from_fn_with_state(gateway.clone(), count))
        .with_state(gateway)
}

async fn nowhere() -> Response {
    let message =
        "there are /kv/{key}, /batch, /scan, /explain/{key}, /health/live, /health/ready and /metrics here";
    error(StatusCode::NOT_FOUND, "no-such-path", message).into_response()
}

async fn wrong_method() -> Response {
    let message = "the path does not take this method; the header Allow names those that it takes";
    error(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", message).into_response()
}

async fn count(State(gateway): App, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = usize::from(response.status().as_u16());
    if let Some(counter) = status.checked_sub(100).and_then(|at| gateway.counts.responses.get(at)) {
        counter.one();
    }
    response
}
