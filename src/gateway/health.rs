//! `/health/live` and `/health/ready`: for whoever starts nodes, and for whoever sends them requests.
//!
//! *Live* says that the process answers; one that does not should be started again. *Ready* says that requests may be
//! sent here rather than elsewhere. It does not depend on other nodes, or one netsplit would take every node out of
//! its balancer. A full disk leaves a node ready: it reads, and when every disk is full, reads are what is left.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde_json::json;

use super::App;
use super::answer::{json_response, status_of};
use crate::net::message::RefusalCode;

/// GET.
pub(super) async fn live(State(gateway): App) -> Response {
    json_response(StatusCode::OK, &json!({ "status": "live", "node": gateway.node.id().to_string() }))
}

/// GET.
pub(super) async fn ready(State(gateway): App) -> Response {
    let node = &gateway.node;
    let writable = node.writable();
    let full = writable.as_ref().is_err_and(|refusal| refusal.code == RefusalCode::DiskFull);
    let (is_ready, status) = if node.stopping().get() {
        (false, "stopping")
    } else if writable.is_err() && !full {
        (false, "storage does not take writes")
    } else {
        (true, "ready")
    };
    let down: Vec<String> = node.peers_down().iter().map(ToString::to_string).collect();
    let mut body = json!({
        "status": status,
        "node": node.id().to_string(),
        "writes": "taken",
        "peers_down": down,
    });
    if let Err(refusal) = &writable {
        body["writes"] = json!(status_of(refusal.code).1);
        body["message"] = json!(refusal.message);
    }
    if is_ready {
        return json_response(StatusCode::OK, &body);
    }
    let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, &body);
    response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    response
}
