//! `GET /explain/{key}`: all there is of a key on every member, and why. `ringdove explain --json` prints the same.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::App;
use super::answer::Refused;
use super::json::{insert_bytes, moment};
use super::params::{Params, key_behind, trace_id};
use crate::net::message::{CopyView, Explain, ExplainReply, MemberView, PeerDown, PeerState, SiblingView};
use crate::node::metrics::Door;
use crate::types::{ActorId, Key, Namespace};

const PARAMS: &[&str] = &["namespace", "timeout"];

/// GET.
pub(super) async fn explain(State(gateway): App, uri: Uri, headers: HeaderMap) -> Result<Response, Refused> {
    let key = key_behind("/explain/", &uri)?;
    let params = Params::of(&uri, "GET /explain/{key}", PARAMS)?;
    let namespace = Namespace(params.number("namespace")?.unwrap_or_default());
    let request = gateway.node.request(Door::Rest, params.duration("timeout")?, trace_id(&headers))?;
    let told = gateway.node.explain(Explain { namespace, key: key.clone() }, request).await?;
    gateway.large_json(StatusCode::OK, &explain_json(namespace, &key, &told))
}

/// An explanation.
pub(crate) fn explain_json(namespace: Namespace, key: &Key, told: &ExplainReply) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key.as_bytes());
    let layout = json!({ "version": told.layout.version, "hash": format!("{:016x}", told.layout.hash) });
    let fields = [
        ("namespace", json!(namespace.0)),
        ("partition", json!(told.partition.0)),
        ("layout", layout),
        ("asked", json!(told.asked.to_string())),
        ("words", json!(told.words)),
        ("members", told.members.iter().map(|member| member_json(told, member)).collect()),
    ];
    object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(object)
}

/// Whether a member is asked, as a word.
pub(crate) fn state_word(state: PeerState) -> &'static str {
    match state {
        PeerState::Up => "up",
        PeerState::Unreachable => "unreachable",
        PeerState::Down(PeerDown::Silent) => "silent",
        PeerState::Down(PeerDown::Refused) => "refused",
        PeerState::Down(PeerDown::Unanswered) => "unanswered",
        PeerState::Damped => "damped",
    }
}

fn member_json(told: &ExplainReply, member: &MemberView) -> Value {
    let role = if member.is_primary { "primary" } else { "fallback" };
    let mut object = json!({
        "node": member.node.to_string(),
        "role": role,
        "zone": member.zone,
        "state": state_word(member.state),
        "heard_ms_ago": (member.heard_ms_ago < u64::MAX).then_some(member.heard_ms_ago),
        "answered": member.told.is_ok(),
    });
    match &member.told {
        Err(why) => object["message"] = json!(why),
        Ok(reply) => {
            object["data"] = copy_json(told, &reply.data);
            object["guest"] = copy_json(told, &reply.guest);
            object["refilled"] = json!(reply.refilled);
            object["fence"] = json!(reply.fence);
            object["committed"] = json!(reply.committed);
            object["leaf"] = json!({
                "index": reply.leaf,
                "of": 1_u64 << reply.bits.min(63),
                "hash": format!("{:016x}", reply.leaf_hash),
            });
        }
    }
    object
}

fn actor_json(told: &ExplainReply, actor: ActorId, counter: u64) -> Value {
    json!({
        "incarnation": format!("{:016x}", actor.incarnation.0),
        "epoch": actor.epoch,
        "counter": counter,
        "node": told.writer_of(actor).map(|node| node.to_string()),
    })
}

fn copy_json(told: &ExplainReply, copy: &CopyView) -> Value {
    match copy {
        CopyView::Absent => Value::Null,
        CopyView::Unreadable(why) => json!({ "damaged": why }),
        CopyView::Held(held) => json!({
            "version_hash": format!("{:016x}", held.version_hash),
            "siblings": held.siblings.iter().map(|sibling| sibling_json(told, sibling)).collect::<Value>(),
            "siblings_count": held.siblings_len,
            "context": held.context.iter().map(|(actor, counter)| actor_json(told, *actor, *counter)).collect::<Value>(),
            "context_count": held.context_len,
            "kept_for": held.owed_to.iter().map(ToString::to_string).collect::<Value>(),
        }),
    }
}

fn sibling_json(told: &ExplainReply, sibling: &SiblingView) -> Value {
    json!({
        "dot": actor_json(told, sibling.dot.actor, sibling.dot.counter),
        "write_id": sibling.write_id.to_string(),
        "tombstone": sibling.value_len.is_none(),
        "size": sibling.value_len,
        "written_at": moment(sibling.written_at),
        "expires_at": sibling.expires_at.map(moment),
        "expired": sibling.expires_at.is_some_and(|at| at <= told.now),
    })
}
