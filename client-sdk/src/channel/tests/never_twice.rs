//! A call that is not declared idempotent is never executed twice. Servers of raw HTTP/2 frames do their worst at every point of
//! a call, to calls of every shape, while retries and hedges are in force for other methods; and each counts, call by call,
//! what it has executed. Both endpoints of a channel misbehave alike, so that wherever a call were repeated, it would show.

use std::collections::BTreeMap;
use std::sync::Mutex;

use lookaside_proto::demo::EchoResponse;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::MethodPolicy;

/// How far a call gets before it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    /// Its HEADERS have come and nobody has read them.
    Unread,
    Headers,
    /// A part of its request has come.
    MidRequest,
    Request,
    /// The head of its response is out.
    ResponseHead,
    /// And half of a message.
    MidResponse,
    /// And the whole of it; the trailers are missing.
    Response,
}

const POINTS: [Point; 7] = [
    Point::Unread,
    Point::Headers,
    Point::MidRequest,
    Point::Request,
    Point::ResponseHead,
    Point::MidResponse,
    Point::Response,
];

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// The connection ends in good order.
    Close,
    /// And in bad order, as when a machine is gone.
    Abort,
    /// RST_STREAM with this error code.
    Reset(u32),
    /// GOAWAY that names a last stream so far from that of the call, in streams; the connection stays.
    GoAway(i64),
    /// The same, and the connection ends.
    GoAwayAndClose(i64),
    /// Nothing, ever.
    Silence,
}

const REFUSED_STREAM: u32 = 7;

fn deeds() -> Vec<Deed> {
    // Every code there is, two that are not, and the largest.
    let codes = (0..=15).chain([u32::MAX]);
    let mut deeds = vec![Deed::Close, Deed::Abort, Deed::Silence];
    deeds.extend(codes.map(Deed::Reset));
    deeds.extend([-1, 0, 1].into_iter().flat_map(|off| [Deed::GoAway(off), Deed::GoAwayAndClose(off)]));
    deeds
}

impl Deed {
    /// Whether the peer thereby says, in time, that it has not processed the call, and never will.
    fn disclaims(self, point: Point) -> bool {
        let says_so = match self {
            Deed::Reset(code) => code == REFUSED_STREAM,
            Deed::GoAway(off) | Deed::GoAwayAndClose(off) => off < 0,
            Deed::Close | Deed::Abort | Deed::Silence => false,
        };
        says_so && point < Point::ResponseHead
    }
}

/// Executions by call.
type Executions = Arc<Mutex<BTreeMap<usize, usize>>>;

/// What the servers of one case do, and to which call.
#[derive(Clone)]
struct Case {
    point: Point,
    deed: Deed,
    /// The call under way: there is one at a time.
    call: usize,
    executions: Executions,
}

impl Case {
    fn executed(&self) {
        if !self.deed.disclaims(self.point) {
            *self.executions.lock().unwrap().entry(self.call).or_default() += 1;
        }
    }
}

async fn serve(case: Case) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let case = case.clone();
            tokio::spawn(async move { misbehave(socket, case).await });
        }
    });
    address
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `:status: 200` and `content-type: application/grpc`, as HPACK has them without any table.
fn response_head() -> Vec<u8> {
    let mut head = vec![0x88, 0, 12];
    head.extend(b"content-type");
    head.push(16);
    head.extend(b"application/grpc");
    head
}

async fn misbehave(mut socket: TcpStream, case: Case) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    socket.read_exact(&mut [0; 24]).await?;
    let mut parts = 0;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let stream = u32::from_be_bytes(stream);
        if kind == HEADERS && case.point == Point::Unread {
            return act(&mut socket, &case, stream).await;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        socket.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & 1 == 0 => socket.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            HEADERS => {
                // The first thing a server knows of a call: whatever it does from now on may be its work.
                case.executed();
                if case.point == Point::Headers {
                    act(&mut socket, &case, stream).await?;
                }
            }
            DATA => {
                parts += 1;
                if case.point == Point::MidRequest && parts == 1 {
                    act(&mut socket, &case, stream).await?;
                }
            }
            _ => {}
        }
        let is_whole = matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
        if is_whole && case.point >= Point::Request {
            answer(&mut socket, case.point, stream).await?;
            act(&mut socket, &case, stream).await?;
        }
    }
}

/// As much of a response as there is before the point.
async fn answer(socket: &mut TcpStream, point: Point, stream: u32) -> std::io::Result<()> {
    let message = prost::Message::encode_to_vec(&EchoResponse { payload: vec![7; 100], ..Default::default() });
    let mut data = vec![0];
    data.extend((message.len() as u32).to_be_bytes());
    data.extend(message);
    if point >= Point::ResponseHead {
        socket.write_all(&frame(HEADERS, END_HEADERS, stream, &response_head())).await?;
    }
    match point {
        Point::MidResponse => socket.write_all(&frame(DATA, 0, stream, &data[..50])).await,
        Point::Response => socket.write_all(&frame(DATA, 0, stream, &data)).await,
        Point::Unread | Point::Headers | Point::MidRequest | Point::Request | Point::ResponseHead => Ok(()),
    }
}

async fn act(socket: &mut TcpStream, case: &Case, stream: u32) -> std::io::Result<()> {
    let goodbye = |off: i64| {
        let last = u32::try_from(i64::from(stream) + 2 * off).unwrap_or(0);
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend(0u32.to_be_bytes());
        frame(GOAWAY, 0, 0, &payload)
    };
    let over = Err(std::io::ErrorKind::ConnectionAborted.into());
    match case.deed {
        Deed::Silence => Ok(()),
        Deed::Reset(code) => socket.write_all(&frame(RST_STREAM, 0, stream, &code.to_be_bytes())).await,
        Deed::GoAway(off) => socket.write_all(&goodbye(off)).await,
        Deed::GoAwayAndClose(off) => {
            socket.write_all(&goodbye(off)).await?;
            socket.shutdown().await?;
            over
        }
        Deed::Close => {
            socket.shutdown().await?;
            over
        }
        Deed::Abort => {
            socket.set_zero_linger()?;
            over
        }
    }
}

/// The four shapes of a call.
const SHAPES: [&str; 4] = ["Unary", "ServerStream", "ClientStream", "BothStream"];

/// Makes a call of this shape; whatever comes of it is read to the end. Whether it went well.
async fn call(client: &mut EchoClient<Channel>, shape: &str) -> bool {
    const TIME: Duration = Duration::from_millis(150);
    fn limited<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(TIME);
        request
    }
    // With pauses, so that there is a middle.
    let requests = || {
        limited(futures_util::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            (n < 3).then(|| (says(&[7; 100]), n + 1))
        }))
    };
    let read = |answers: Result<tonic::Response<tonic::Streaming<EchoResponse>>, tonic::Status>| async {
        let Ok(answers) = answers else { return false };
        answers.into_inner().collect::<Vec<_>>().await.iter().all(Result::is_ok)
    };
    match shape {
        "Unary" => client.unary(limited(says(&[7; 100]))).await.is_ok(),
        "ServerStream" => read(client.server_stream(limited(StreamRequest::default())).await).await,
        "ClientStream" => client.client_stream(requests()).await.is_ok(),
        _ => read(client.both_stream(requests()).await).await,
    }
}

/// Runs every case of these shapes; the executions by call, and how many calls were repeated.
async fn run(shapes: &[&str], methods: &[(&str, MethodPolicy)]) -> (usize, usize) {
    let (mut calls, mut repeated) = (0, 0);
    for point in POINTS {
        for deed in deeds() {
            let executions = Executions::default();
            let cases = shapes.iter().map(|shape| {
                calls += 1;
                let case = Case { point, deed, call: calls, executions: executions.clone() };
                async move {
                    let servers = [serve(case.clone()).await, serve(case.clone()).await];
                    let mut builder = fixed(&[&servers[0], &servers[1]]).hedge_budget_percent(100);
                    for (path, policy) in methods {
                        builder = builder.method(*path, policy.clone());
                    }
                    let (channel, mut client) = client(builder);
                    ready(&channel).await;
                    assert!(!call(&mut client, shape).await, "{shape} went well: {point:?} {deed:?}");
                }
            });
            futures_util::future::join_all(cases).await;
            let executions = executions.lock().unwrap();
            repeated += executions.values().filter(|n| **n > 1).count();
            let expected = if deed.disclaims(point) || point == Point::Unread { 0 } else { shapes.len() };
            assert_eq!(executions.len(), expected, "{point:?} {deed:?}: {executions:?}");
        }
    }
    (calls, repeated)
}

fn eager() -> MethodPolicy {
    let codes = (1..=16).map(Code::from_i32);
    let hedged = MethodPolicy::new().idempotent().hedge_after(Duration::from_millis(20)).hedges(2);
    hedged.attempts(3).retry_on(codes).backoff(Duration::from_millis(1), Duration::from_millis(2))
}

#[tokio::test]
async fn what_is_not_declared_idempotent_is_never_executed_twice_whatever_happens_to_it() {
    // Plainly, and with all that repeats calls in force for the other methods of the very channel.
    let (calls, repeated) = run(&SHAPES, &[]).await;
    assert_eq!(repeated, 0, "of {calls}");
    let path = |method: &str| format!("/lookaside.demo.v1.Echo/{method}");
    let mine = MethodPolicy::new().default_deadline(Duration::from_secs(5)).retry_on([Code::Unavailable]);
    let own = SHAPES.map(path);
    let mut methods: Vec<(&str, MethodPolicy)> = own.iter().map(|path| (path.as_str(), mine.clone())).collect();
    methods.extend([("", eager()), ("/lookaside.demo.v1.Echo/", eager()), ("/lookaside.demo.v1.Echo/Get", eager())]);
    let (more, repeated) = run(&SHAPES, &methods).await;
    assert_eq!(repeated, 0, "of {more}");
    assert!(calls + more > 1_400, "{calls} and {more}");
}

#[tokio::test]
async fn the_same_calls_declared_idempotent_are_executed_again_so_that_the_test_above_proves_something() {
    let (calls, repeated) = run(&["Unary"], &[("", eager())]).await;
    assert!(repeated > calls / 4, "{repeated} of {calls}");
}
