//! Backends for tests: a real tonic one, and one that speaks raw HTTP/2 frames to misbehave in exactly one way.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use lookaside_proto::demo::{
    EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest, echo_server,
};
#[cfg(feature = "reporter")]
use lookaside_proto::v1::{ProbeRequest, ProbeResponse, backend_server};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::server::Connected};

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) calls: AtomicUsize,
    pub(super) open: AtomicUsize,
    pub(super) messages: AtomicUsize,
    pub(super) connections: AtomicUsize,
    /// Most calls that were open at once.
    pub(super) open_max: AtomicUsize,
    /// How long unary calls take, milliseconds, beside what they ask for themselves.
    pub(super) slow_ms: AtomicU64,
    /// What the next unary calls are answered with, each once.
    pub(super) answers: Mutex<VecDeque<Status>>,
    /// The headers of all unary calls.
    pub(super) seen: Mutex<Vec<MetadataMap>>,
    /// Probes that arrived, and whether they are answered.
    pub(super) probes: AtomicUsize,
    pub(super) is_deaf: AtomicBool,
    /// Whether probes are shed.
    pub(super) sheds: AtomicBool,
}

/// Counts a call as open until dropped.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.calls.fetch_add(1, SeqCst);
        counts.open_max.fetch_max(counts.open.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(counts.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

struct Echo(Arc<Counts>);

type Responses = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    /// The payload says what to do: "wait" never answers, a number is a status code, all else is echoed.
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let _open = Open::new(&self.0);
        self.0.seen.lock().unwrap().push(request.metadata().clone());
        if let Some(status) = self.0.answers.lock().unwrap().pop_front() {
            return Err(status);
        }
        let request = request.into_inner();
        let slow_ms = self.0.slow_ms.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(request.answer_delay_ms + slow_ms)).await;
        match request.request_id.as_str() {
            "wait" => std::future::pending().await,
            id => match id.parse() {
                Ok(code) => Err(Status::new(tonic::Code::from_i32(code), "as you wish")),
                Err(_) => Ok(Response::new(EchoResponse { payload: request.payload, ..Default::default() })),
            },
        }
    }

    type ServerStreamStream = Responses;
    async fn server_stream(&self, request: Request<StreamRequest>) -> Result<Response<Responses>, Status> {
        let open = Open::new(&self.0);
        let request = request.into_inner();
        let payload = vec![7; request.size_bytes as usize];
        let pause = Duration::from_millis(request.interval_ms);
        let messages = stream::unfold((0, open, payload), move |(index, open, payload)| async move {
            if index == request.count {
                return None;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            open.0.messages.fetch_add(1, SeqCst);
            let response = EchoResponse { payload: payload.clone(), index, ..Default::default() };
            Some((Ok(response), (index + 1, open, payload)))
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn client_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        let _open = Open::new(&self.0);
        let mut requests = request.into_inner();
        let mut index = 0;
        while requests.message().await?.is_some() {
            index += 1;
        }
        Ok(Response::new(EchoResponse { index, ..Default::default() }))
    }

    type BothStreamStream = Responses;
    async fn both_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Responses>, Status> {
        let open = Open::new(&self.0);
        let echoed = request.into_inner().map(move |request| {
            let _ = &open;
            request.map(|r| EchoResponse { payload: r.payload, ..Default::default() })
        });
        Ok(Response::new(echoed.boxed()))
    }

    async fn executions(&self, _: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        Err(Status::unimplemented("not in tests"))
    }
}

/// Answers probes, and counts them.
#[cfg(feature = "reporter")]
struct Probes(Arc<Counts>, crate::Reporter);

#[cfg(feature = "reporter")]
#[tonic::async_trait]
impl backend_server::Backend for Probes {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.0.probes.fetch_add(1, SeqCst);
        if self.0.is_deaf.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.0.sheds.load(SeqCst) {
            return Err(Status::resource_exhausted("too much to do"));
        }
        Ok(Response::new(ProbeResponse { in_flight: self.1.in_flight(), ..Default::default() }))
    }
}

/// A real backend.
pub(super) struct Backend {
    pub(super) address: String,
    pub(super) counts: Arc<Counts>,
    stop: Arc<Notify>,
}

impl Backend {
    pub(super) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(super) async fn start_with(max_streams: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, max_streams)
    }

    fn serve(listener: TcpListener, max_streams: Option<u32>) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        Self::serve_incoming(address, TcpListenerStream::new(listener), max_streams)
    }

    #[cfg(feature = "reporter")]
    pub(super) async fn over_tls(acceptor: crate::tls::Acceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self::serve_incoming(address, crate::tls::incoming(listener, acceptor), None)
    }

    /// One that tells its load on every response.
    #[cfg(feature = "reporter")]
    pub(super) async fn reporting() -> Self {
        Self::reporting_and(false).await
    }

    /// One that answers probes as well.
    #[cfg(feature = "reporter")]
    pub(super) async fn probed() -> Self {
        Self::reporting_and(true).await
    }

    #[cfg(feature = "reporter")]
    async fn reporting_and(is_probed: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let reporter = crate::Reporter::builder("echo").advertise(&address).start().await.unwrap();
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(Notify::new()));
        let stopped = stop.clone();
        let probes = Probes(counts.clone(), reporter.clone());
        let server = tonic::transport::Server::builder()
            .layer(reporter.layer())
            .add_optional_service(is_probed.then(|| backend_server::BackendServer::new(probes)))
            .add_service(echo_server::EchoServer::new(Echo(counts.clone())))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move { stopped.notified().await });
        tokio::spawn(server);
        Self { address, counts, stop }
    }

    fn serve_incoming<IO>(
        address: String,
        incoming: impl Stream<Item = std::io::Result<IO>> + Send + 'static,
        max_streams: Option<u32>,
    ) -> Self
    where
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let counts = Arc::new(Counts::default());
        let stop = Arc::new(Notify::new());
        let (counted, stopped) = (counts.clone(), stop.clone());
        let incoming = incoming.inspect(move |_| {
            counted.connections.fetch_add(1, SeqCst);
        });
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(max_streams)
            .add_service(echo_server::EchoServer::new(Echo(counts.clone())))
            .serve_with_incoming_shutdown(incoming, async move { stopped.notified().await });
        tokio::spawn(server);
        Self { address, counts, stop }
    }

    /// Answers the next unary call with this.
    pub(super) fn answers(&self, status: Status) {
        self.counts.answers.lock().unwrap().push_back(status);
    }

    /// Unary calls that arrived.
    pub(super) fn seen(&self) -> Vec<MetadataMap> {
        self.counts.seen.lock().unwrap().clone()
    }

    /// Takes so long for each unary call from now on.
    pub(super) fn slow_down(&self, ms: u64) {
        self.counts.slow_ms.store(ms, SeqCst);
    }

    /// Says goodbye in good order: calls in flight finish.
    pub(super) fn shut_down(&self) {
        self.stop.notify_one();
    }
}

/// How a raw server treats each call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Never answers.
    Hang,
    /// RST_STREAM with REFUSED_STREAM.
    Refuse,
    /// The same after a while.
    RefuseLate,
    /// GOAWAY that names no stream as processed.
    GoAway,
    /// The same after a while.
    GoAwayLate,
    /// Closes the connection.
    Close,
    /// GOAWAY that counts the call among those it will process, and then closes the connection.
    AdmitAndClose,
}

/// A server that speaks just enough HTTP/2 to misbehave.
pub(super) struct Raw {
    pub(super) address: String,
    /// Calls that arrived.
    pub(super) calls: Arc<AtomicUsize>,
}

impl Raw {
    pub(super) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(misbehave(socket, manner, counter.clone()));
            }
        });
        Self { address, calls }
    }
}

/// How long a server takes that is late.
pub(super) const LATE: Duration = Duration::from_millis(300);
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;

async fn misbehave(mut socket: TcpStream, manner: Manner, calls: Arc<AtomicUsize>) -> std::io::Result<()> {
    socket.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await?;
    socket.read_exact(&mut [0; 24]).await?;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await?;
        let [_, _, _, kind, flags, stream @ ..] = head;
        if kind == SETTINGS && flags & 1 == 0 {
            socket.write_all(&[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0]).await?;
        }
        if kind != HEADERS {
            continue;
        }
        calls.fetch_add(1, SeqCst);
        match manner {
            Manner::Hang => {}
            Manner::Refuse | Manner::RefuseLate => {
                if matches!(manner, Manner::RefuseLate) {
                    tokio::time::sleep(LATE).await;
                }
                let mut frame = vec![0, 0, 4, 3, 0];
                frame.extend(stream);
                frame.extend(7u32.to_be_bytes());
                socket.write_all(&frame).await?;
            }
            Manner::GoAway | Manner::GoAwayLate => {
                if matches!(manner, Manner::GoAwayLate) {
                    tokio::time::sleep(LATE).await;
                }
                socket.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await?;
            }
            Manner::Close => return Ok(()),
            Manner::AdmitAndClose => {
                let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
                frame.extend(stream);
                frame.extend(0u32.to_be_bytes());
                socket.write_all(&frame).await?;
                return socket.shutdown().await;
            }
        }
    }
}

/// Waits until the condition holds, five seconds at most.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), wait).await.is_ok(), "never came true: {what}");
}
