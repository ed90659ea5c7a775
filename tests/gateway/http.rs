//! A client that says exactly what a test wants said, and nodes with gateways to say it to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringdove::gateway::{GatewayConfig, serve_rest};
use ringdove::io::fault_disk::FaultDisk;
use ringdove::io::{Disk, MemoryDisk};
use ringdove::node::NodeConfig;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::Cluster;

/// Ends a test that would hang: far above every limit that a test sets.
pub(crate) async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("the node ends it")
}

/// A cluster with a gateway beside each node.
pub(crate) struct Rest {
    pub(crate) cluster: Cluster,
    pub(crate) addrs: Vec<SocketAddr>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no whole head: {:?}", bytes.escape_ascii().to_string()));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn context(&self) -> &str {
        self.header("ringdove-context").expect("a context")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// Asserts that this is an error as every error is.
    pub(crate) fn refused(&self, status: u16, code: &str, words: &str) {
        let body = self.json();
        assert_eq!((self.status, &body["error"]), (status, &Value::from(code)), "{body}");
        assert_eq!(self.header("ringdove-error"), Some(code));
        assert_eq!(body["applied"], "no", "{body}");
        assert!(body["message"].as_str().unwrap().contains(words), "{words:?} is not in {body}");
    }
}

impl Rest {
    pub(crate) async fn start(nodes: u64) -> Rest {
        Rest::start_with(nodes, GatewayConfig::default(), |_, _| {}).await
    }

    pub(crate) async fn start_with(
        nodes: u64,
        config: GatewayConfig,
        settings: impl Fn(u64, &mut NodeConfig),
    ) -> Rest {
        Rest::beside(Cluster::start_with(nodes, settings).await, config).await
    }

    /// Three nodes, the first of them on this disk.
    pub(crate) async fn start_on(disk: &FaultDisk, settings: impl Fn(u64, &mut NodeConfig)) -> Rest {
        let disk_of = |id| -> Arc<dyn Disk> {
            if id == 1 { Arc::new(disk.clone()) } else { Arc::new(MemoryDisk::new()) }
        };
        Rest::beside(Cluster::start_on(3, settings, disk_of).await, GatewayConfig::default()).await
    }

    async fn beside(cluster: Cluster, config: GatewayConfig) -> Rest {
        let mut addrs = Vec::new();
        for node in &cluster.nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(listener.local_addr().unwrap());
            tokio::spawn(serve_rest(node.clone(), listener, config));
        }
        Rest { cluster, addrs }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addrs[0]).await.unwrap()
    }

    /// Sends these bytes to the first node and reads until it closes; the answer, none when there is none.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Option<Answer> {
        let mut stream = self.connect().await;
        // A server that refuses by the head may close before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = watched(stream.read_to_end(&mut answer)).await;
        (!answer.is_empty()).then(|| Answer::parse(&answer))
    }

    /// One request to node `at`, on a connection of its own.
    pub(crate) async fn ask_at(
        &self,
        at: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let (body, addr) = (body.as_ref(), self.addrs[at]);
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let write = async {
            let _ = writer.write_all(head.as_bytes()).await;
            let _ = writer.write_all(body).await;
        };
        let mut bytes = Vec::new();
        let (_, _read) = tokio::join!(write, reader.read_to_end(&mut bytes));
        let answer = Answer::parse(&bytes);
        if method != "HEAD" && answer.header("content-length").is_some() {
            assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
        }
        answer
    }

    /// One request to the first node.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        self.ask_at(0, method, path, headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    /// A write that must succeed, without siblings.
    pub(crate) async fn put(&self, path: &str, value: &str) -> Answer {
        let answer = self.ask("PUT", path, &[], value).await;
        assert_eq!(answer.status, 204, "PUT {path}: {}", answer.text());
        answer
    }

    pub(crate) async fn get_json(&self, path: &str) -> Value {
        self.ask("GET", path, &[("accept", "application/json")], "").await.json()
    }
}
