//! Pick streams by the thousand, without the SDK: a few connections carry them, each does what a client does (hello,
//! subscription, acknowledgements), comes back when it is lost, with what it holds, and notes what it is told.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request};
use lookaside_proto::v1::{
    Ack, HeldList, Hello, List, PickRequest, PickResponse, Subscribe, Version, pick_request::Kind as Ask,
    pick_response::Kind as Said,
};
use prost::Message as _;
use tokio::{net::TcpStream, task::JoinSet};

/// Between two attempts to come back at most; at least nothing.
const RETURN_MAX: Duration = Duration::from_secs(2);

/// Many pick streams of one service.
#[derive(Debug)]
pub struct Picks {
    streams: Vec<Arc<Stream>>,
    /// One per connection; they end when this is dropped.
    _connections: JoinSet<()>,
}

/// One client.
#[derive(Debug, Default)]
struct Stream {
    id: String,
    service: String,
    got: Mutex<Got>,
}

/// What a client was told.
#[derive(Debug, Default)]
struct Got {
    /// Whether the stream that is open now has brought a list or confirmed the one held.
    is_served: bool,
    digest: u64,
    version: Option<Version>,
    endpoints: BTreeSet<String>,
    /// The fewest endpoints that it ever held, once it held any.
    fewest: Option<usize>,
    lists: usize,
    refusals: usize,
    losses: usize,
}

/// How a stream ended.
enum End {
    /// The balancer wants it to come back after this time.
    Refused(Duration),
    /// The connection is gone, or the balancer is.
    Lost,
}

impl Picks {
    /// Opens so many streams on each of so many connections, and keeps them open.
    pub fn hold(balancer: &str, service: &str, connections: usize, streams_each: usize) -> Self {
        let mut tasks = JoinSet::new();
        let mut streams = Vec::new();
        for connection in 0..connections {
            let own: Vec<_> = (0..streams_each)
                .map(|number| {
                    let id = format!("held-{connection}-{number}");
                    Arc::new(Stream { id, service: service.to_owned(), got: Mutex::default() })
                })
                .collect();
            streams.extend(own.iter().cloned());
            tasks.spawn(keep(balancer.to_owned(), own));
        }
        Self { streams, _connections: tasks }
    }

    /// Streams that are open and have been answered.
    pub fn served(&self) -> usize {
        self.count(|got| got.is_served)
    }

    /// Streams that were lost, all of them together.
    pub fn losses(&self) -> usize {
        self.sum(|got| got.losses)
    }

    /// Times that the balancer turned a stream away.
    pub fn refusals(&self) -> usize {
        self.sum(|got| got.refusals)
    }

    /// Lists received.
    pub fn lists(&self) -> usize {
        self.sum(|got| got.lists)
    }

    /// The fewest endpoints that any client ever held after its first list.
    pub fn fewest(&self) -> usize {
        self.streams.iter().filter_map(|stream| stream.got().fewest).min().unwrap_or(0)
    }

    fn count(&self, wanted: impl Fn(&Got) -> bool) -> usize {
        self.streams.iter().filter(|stream| wanted(&stream.got())).count()
    }

    fn sum(&self, number: impl Fn(&Got) -> usize) -> usize {
        self.streams.iter().map(|stream| number(&stream.got())).sum()
    }
}

/// A connection and its streams, for ever.
async fn keep(balancer: String, streams: Vec<Arc<Stream>>) {
    loop {
        // An error means that the balancer is not there.
        let _ = connection(&balancer, &streams).await;
        for stream in &streams {
            stream.got().is_served = false;
        }
        super::pause(RETURN_MAX.mul_f64(super::chance())).await;
    }
}

async fn connection(balancer: &str, streams: &[Arc<Stream>]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = TcpStream::connect(balancer).await?;
    socket.set_nodelay(true)?;
    let (requests, connection) =
        h2::client::Builder::new().initial_connection_window_size(4 << 20).handshake(socket).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    for stream in streams {
        let (stream, requests) = (Arc::clone(stream), requests.clone());
        tasks.spawn(async move {
            while let Ok(End::Refused(pushback)) = stream.session(requests.clone()).await {
                super::pause(pushback).await;
            }
            let mut got = stream.got();
            got.losses += usize::from(got.is_served);
            got.is_served = false;
        });
    }
    drop(requests);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

impl Stream {
    fn got(&self) -> MutexGuard<'_, Got> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One stream, to its end.
    async fn session(&self, requests: SendRequest<Bytes>) -> Result<End, h2::Error> {
        let request = Request::post("http://balancer/lookaside.v1.Balancer/Pick")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut out) = requests.ready().await?.send_request(request, false)?;
        say(&mut out, Ask::Hello(self.hello()))?;
        say(&mut out, Ask::Subscribe(Subscribe { service: self.service.clone() }))?;
        let response = response.await?;
        if let Some(pushback) = pushback(response.headers()) {
            self.got().refusals += 1;
            return Ok(End::Refused(pushback));
        }
        let mut body = response.into_body();
        let mut frames = BytesMut::new();
        while let Some(bytes) = body.data().await {
            let bytes = bytes?;
            let _ = body.flow_control().release_capacity(bytes.len());
            frames.put(bytes);
            while let Some(message) = message(&mut frames) {
                self.hear(message, &mut out)?;
            }
            if frames.is_empty() {
                // Whoever holds thousands of streams keeps no buffer for each.
                frames = BytesMut::new();
            }
        }
        self.end(&mut body).await
    }

    async fn end(&self, body: &mut RecvStream) -> Result<End, h2::Error> {
        let trailers = body.trailers().await?.unwrap_or_default();
        let Some(pushback) = pushback(&trailers) else { return Ok(End::Lost) };
        let mut got = self.got();
        got.refusals += 1;
        got.is_served = false;
        Ok(End::Refused(pushback))
    }

    fn hello(&self) -> Hello {
        let got = self.got();
        let held = got.version.map(|version| HeldList {
            service: self.service.clone(),
            version: Some(version),
            digest: got.digest,
            endpoints: got.endpoints.iter().cloned().collect(),
        });
        Hello { client_id: self.id.clone(), held: held.into_iter().collect(), ..Hello::default() }
    }

    fn hear(&self, message: PickResponse, out: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
        let version = match message.kind {
            Some(Said::List(list)) => self.got().take(list),
            Some(Said::Tick(tick)) => {
                let mut got = self.got();
                (got.is_served, got.version) = (true, tick.version);
                tick.version
            }
            _ => return Ok(()),
        };
        say(out, Ask::Ack(Ack { service: self.service.clone(), version, refused: String::new() }))
    }
}

impl Got {
    fn take(&mut self, list: List) -> Option<Version> {
        let named: BTreeSet<_> = list.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
        let usable = list.endpoints.into_iter().filter(|endpoint| endpoint.weight > 0).map(|endpoint| endpoint.address);
        let silent_about = self.endpoints.iter().filter(|held| !list.complete && !named.contains(*held)).cloned();
        self.endpoints = usable.chain(silent_about.collect::<Vec<_>>()).collect();
        (self.is_served, self.digest, self.version) = (true, list.digest, list.version);
        self.lists += 1;
        self.fewest = Some(self.fewest.map_or(self.endpoints.len(), |fewest| fewest.min(self.endpoints.len())));
        list.version
    }
}

fn pushback(headers: &HeaderMap) -> Option<Duration> {
    let ms = headers.get("grpc-retry-pushback-ms")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(ms))
}

fn say(out: &mut SendStream<Bytes>, kind: Ask) -> Result<(), h2::Error> {
    out.send_data(framed(&PickRequest { kind: Some(kind) }), false)
}

/// A message as gRPC has it.
pub(super) fn framed(message: &impl prost::Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

fn message(frames: &mut BytesMut) -> Option<PickResponse> {
    let length = u32::from_be_bytes(frames.get(1..5)?.try_into().unwrap());
    let length = usize::try_from(length).unwrap();
    if frames.len() < 5 + length {
        return None;
    }
    frames.advance(5);
    Some(PickResponse::decode(frames.split_to(length)).unwrap())
}
