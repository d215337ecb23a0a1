//! Peers that keep to no contract: raw HTTP/2, frame by frame, from an address of their own, so that the balancer can tell
//! them from others; and what they cost it and its other clients meanwhile.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lookaside_proto::v1::{
    Hello, PickRequest, Reserve, Subscribe, balancer_client::BalancerClient, pick_request::Kind as Ask,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Balancer, PROCESS_MAX, SERVICE, pause, picks::framed, wait_for};

/// Where abuse comes from; everybody else comes from 127.0.0.1.
const FROM: &str = "127.0.0.66:0";

/// How long it is quiet before, for comparison.
const QUIET: Duration = Duration::from_secs(3);

/// What one peer may cost in memory.
const GROWN_BYTES_MAX: u64 = 16 << 20;

/// ENHANCE_YOUR_CALM.
const CALM: u32 = 11;

/// What others may notice.
const P99_TIMES_MAX: f64 = 1.25;

/// Round trips take half a millisecond, and whoever abuses does so on the same two processors.
const NOISE: Duration = Duration::from_millis(5);

/// A kind of abuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abuse {
    /// Streams that are opened, as many as it takes, and never ended.
    OpenStreams,
    /// As many streams of other methods as a connection may have, never ended.
    OpenRequests,
    /// PING.
    Pings,
    /// SETTINGS.
    Settings,
    /// PRIORITY.
    Priorities,
    /// WINDOW_UPDATE.
    WindowUpdates,
    /// Frames of a type that there is not.
    UnknownFrames,
    /// DATA without data.
    EmptyData,
    /// Streams that are opened and reset.
    RapidResets,
    /// A header block without an end.
    Continuations,
    /// 1,000 connections that say nothing.
    Silent,
    /// 1,000 connections that say half of what they should.
    HalfOpen,
    /// 1,000 connections that speak HTTP/2 and never ask.
    NeverAsking,
    /// 500 connections that read a byte a second.
    SlowReaders,
    /// Messages of 4 GiB, as they say.
    HugeMessages,
    /// Many messages of 1 MiB that stop half-way.
    UnfinishedMessages,
}

/// What came of it.
#[derive(Debug)]
pub struct Verdict {
    /// Which.
    pub kind: Abuse,
    /// Connections that were made.
    pub connections: usize,
    /// Those that the balancer cut, and when the last of them was.
    pub cut: usize,
    /// See above.
    pub cut_after: Duration,
    /// The reason that the balancer gave last, as HTTP/2 counts them.
    pub goaway: Option<u32>,
    /// Bytes that were sent.
    pub sent_bytes: usize,
    /// Memory that the balancer took beside what it had, at worst.
    pub grown_bytes: u64,
    /// Round trips on a pick stream of another client: quiet and under abuse.
    pub p99: [Duration; 2],
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, cut, cut_after, goaway, sent_bytes, grown_bytes, p99: [quiet, abused], .. } = self;
        let kind = format!("{:?}", self.kind);
        write!(
            f,
            "{kind:<20} {cut:>4} of {connections:>4} cut after {:>6.3} s, goaway {goaway:?}, {:>7} KiB sent, {:>6} KiB \
             grown, p99 {quiet:?} -> {abused:?}",
            cut_after.as_secs_f64(),
            sent_bytes >> 10,
            grown_bytes >> 10,
        )
    }
}

impl Verdict {
    /// It holds: little memory, cut where that is the only remedy and in time, and for others nearly nothing.
    pub fn expect_harmless(&self) {
        assert!(self.grown_bytes <= GROWN_BYTES_MAX, "{self}");
        if self.kind.must_be_cut() {
            assert_eq!(self.cut, self.connections, "{self}");
        }
        if matches!(self.kind, Abuse::Pings | Abuse::Settings | Abuse::Priorities | Abuse::UnknownFrames) {
            // As far as the peer comes to read it before its connection is reset.
            assert!(self.goaway.is_none_or(|code| code == CALM), "{self}");
        }
        let [quiet, abused] = self.p99;
        assert!(abused <= quiet.mul_f64(P99_TIMES_MAX) + NOISE, "{self}");
    }
}

/// How one connection ended.
#[derive(Debug, Default, Clone, Copy)]
struct End {
    cut_after: Option<Duration>,
    goaway: Option<u32>,
    sent_bytes: usize,
}

impl Abuse {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::OpenStreams,
        Self::OpenRequests,
        Self::Pings,
        Self::Settings,
        Self::Priorities,
        Self::WindowUpdates,
        Self::UnknownFrames,
        Self::EmptyData,
        Self::RapidResets,
        Self::Continuations,
        Self::Silent,
        Self::HalfOpen,
        Self::NeverAsking,
        Self::SlowReaders,
        Self::HugeMessages,
        Self::UnfinishedMessages,
    ];

    /// Whether such a connection can only be cut; others are bounded, whatever they do.
    pub fn must_be_cut(self) -> bool {
        !matches!(self, Self::OpenRequests | Self::SlowReaders | Self::HugeMessages | Self::UnfinishedMessages)
    }

    /// Whether it is what is not said that it consists of.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Silent | Self::HalfOpen | Self::NeverAsking)
    }

    /// Does this to a balancer for so long, and looks on.
    pub async fn commit(self, balancer: &Balancer, duration: Duration) -> Verdict {
        let mut other = Other::connect(balancer).await;
        // Once without a clock, so that nothing is done for the first time later.
        other.p99(Duration::from_millis(500)).await;
        let quiet = other.p99(QUIET).await;
        let before = balancer.process.resident_bytes();
        let deadline = Instant::now() + duration;
        let mut attackers = JoinSet::new();
        let target: SocketAddr = balancer.client.parse().unwrap();
        for _ in 0..self.connections() {
            attackers.spawn(self.attack(target, duration));
        }
        let (abused, grown_bytes) = tokio::join!(other.p99(duration), async {
            let mut most = before;
            while Instant::now() < deadline {
                most = most.max(balancer.process.resident_bytes());
                pause(Duration::from_millis(20)).await;
            }
            most - before
        });
        let ends = attackers.join_all().await;
        Verdict {
            kind: self,
            connections: ends.len(),
            cut: ends.iter().filter(|end| end.cut_after.is_some()).count(),
            cut_after: ends.iter().filter_map(|end| end.cut_after).max().unwrap_or_default(),
            goaway: ends.iter().find_map(|end| end.goaway),
            sent_bytes: ends.iter().map(|end| end.sent_bytes).sum(),
            grown_bytes,
            p99: [quiet, abused],
        }
    }

    fn connections(self) -> usize {
        match self {
            Self::Silent | Self::HalfOpen | Self::NeverAsking => 1_000,
            Self::SlowReaders => 500,
            _ => 1,
        }
    }

    /// One connection, until it is cut or it has had its time.
    async fn attack(self, target: SocketAddr, duration: Duration) -> End {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(FROM.parse().unwrap()).unwrap();
        if self == Self::SlowReaders {
            socket.set_recv_buffer_size(1).unwrap();
        }
        let mut end = End::default();
        let connected = socket.connect(target).await;
        let began = Instant::now();
        let Ok(mut connection) = connected else {
            end.cut_after = Some(Duration::ZERO);
            return end;
        };
        let attack = self.speak(&mut connection, &mut end);
        if tokio::time::timeout(duration, attack).await.is_ok() {
            end.cut_after = Some(began.elapsed());
        }
        end
    }

    /// Says what it has to say, and goes on until the connection is cut.
    async fn speak(self, connection: &mut TcpStream, end: &mut End) {
        let (read, mut write) = connection.split();
        let End { goaway, sent_bytes, .. } = end;
        let speaking = async {
            let opening = self.opening();
            *sent_bytes += opening.len();
            if write.write_all(&opening).await.is_err() {
                return;
            }
            for round in 0.. {
                let more = self.more(round);
                if more.is_empty() {
                    std::future::pending::<()>().await;
                }
                if write.write_all(&more).await.is_err() {
                    // What the balancer said last may still be read.
                    std::future::pending::<()>().await;
                }
                *sent_bytes += more.len();
            }
        };
        let slowly = self == Self::SlowReaders;
        tokio::select! {
            () = speaking => {}
            () = listen(read, goaway, slowly) => {}
        }
    }

    /// What comes first on the connection.
    fn opening(self) -> Vec<u8> {
        let greeting = [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat();
        match self {
            Self::Silent => Vec::new(),
            Self::HalfOpen => PREFACE[..12].to_vec(),
            Self::Continuations => [greeting, frame(HEADERS, 0, 1, &head(PICK))].concat(),
            Self::EmptyData => [greeting, open(1, PICK)].concat(),
            Self::SlowReaders => {
                let hello = Ask::Hello(Hello { client_id: "slow".to_owned(), ..Hello::default() });
                let wish = Ask::Subscribe(Subscribe { service: SERVICE.to_owned() });
                let ask = |kind| frame(DATA, 0, 1, &framed(&PickRequest { kind: Some(kind) }));
                [greeting, open(1, PICK), ask(hello), ask(wish)].concat()
            }
            Self::OpenRequests => {
                let paths = [WATCH, CHECK, REFLECT, REPORT];
                let requests = (0..900).map(|number| open(1 + 2 * number, paths[number as usize % paths.len()]));
                [greeting, requests.collect::<Vec<_>>().concat()].concat()
            }
            Self::HugeMessages => {
                let requests = (0..900).map(|number| {
                    let stream = 1 + 2 * number;
                    [open(stream, PICK), frame(DATA, 0, stream, &[0, 0xff, 0xff, 0xff, 0xff])].concat()
                });
                [greeting, requests.collect::<Vec<_>>().concat()].concat()
            }
            Self::UnfinishedMessages => {
                // As much as a connection may have sent before anything is read.
                let requests = (0..64).map(|number| {
                    let stream = 1 + 2 * number;
                    let part = [&[0, 0, 0x0f, 0xff, 0xff][..], &[7; 14_995]].concat();
                    [open(stream, PICK), frame(DATA, 0, stream, &part).repeat(4)].concat()
                });
                [greeting, requests.collect::<Vec<_>>().concat()].concat()
            }
            _ => greeting,
        }
    }

    /// What comes then, over and over; nothing where there is nothing more to say.
    fn more(self, round: u32) -> Vec<u8> {
        const AT_ONCE: u32 = 500;
        let streams = (round * AT_ONCE..(round + 1) * AT_ONCE).map(|number| 1 + 2 * number);
        let same = |frame: Vec<u8>| frame.repeat(AT_ONCE as usize);
        match self {
            Self::OpenStreams => streams.flat_map(|stream| open(stream, PICK)).collect(),
            Self::RapidResets => {
                let and_reset = |stream| [open(stream, PICK), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
                streams.flat_map(and_reset).collect()
            }
            Self::Pings => same(frame(PING, 0, 0, &[7; 8])),
            Self::Settings => same(frame(SETTINGS, 0, 0, &[])),
            Self::Priorities => same(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15])),
            Self::WindowUpdates => same(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            Self::UnknownFrames => same(frame(0xbb, 0, 0, &[7; 8])),
            Self::EmptyData => same(frame(DATA, 0, 1, &[])),
            Self::Continuations => same(frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y'])),
            Self::OpenRequests
            | Self::Silent
            | Self::HalfOpen
            | Self::NeverAsking
            | Self::SlowReaders
            | Self::HugeMessages
            | Self::UnfinishedMessages => Vec::new(),
        }
    }
}

/// Reads until the connection is cut.
async fn listen(mut read: impl AsyncRead + Unpin, goaway: &mut Option<u32>, slowly: bool) {
    if slowly {
        while read.read_u8().await.is_ok() {
            pause(Duration::from_secs(1)).await;
        }
        return;
    }
    let mut head = [0; 9];
    while read.read_exact(&mut head).await.is_ok() {
        let [high, middle, low, kind, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        if read.read_exact(&mut payload).await.is_err() {
            return;
        }
        if kind == GOAWAY {
            *goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

const PICK: &str = "/lookaside.v1.Balancer/Pick";
const REPORT: &str = "/lookaside.v1.Reporter/Report";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request that has no end yet.
fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(path))
}

/// A head in HPACK: entries of the static table, and literals that nobody is to remember.
fn head(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let (post, http) = ([0x83], [0x86]);
    let parts = [
        [&post[..], &http, &[0x04], &text(path)].concat(),
        [&[0x01][..], &text("balancer")].concat(),
        [&[0x0f, 0x10][..], &text("application/grpc")].concat(),
        [&[0x00][..], &text("te"), &text("trailers")].concat(),
    ];
    parts.concat()
}

/// Another client, which is to notice nothing.
struct Other {
    ask: mpsc::Sender<PickRequest>,
    answers: tonic::Streaming<lookaside_proto::v1::PickResponse>,
}

impl Other {
    async fn connect(balancer: &Balancer) -> Self {
        let mut client = wait_for("a connection", PROCESS_MAX, async || {
            BalancerClient::connect(format!("http://{}", balancer.client)).await.ok()
        })
        .await;
        let (ask, requests) = mpsc::channel(4);
        let hello = Ask::Hello(Hello { client_id: "other".to_owned(), ..Hello::default() });
        ask.send(PickRequest { kind: Some(hello) }).await.unwrap();
        let answers = client.pick(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { ask, answers }
    }

    /// Round trips for so long: it asks for something that is always objected to.
    async fn p99(&mut self, duration: Duration) -> Duration {
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < duration {
            let asked = Instant::now();
            let wish = Ask::Reserve(Reserve { service: SERVICE.to_owned(), count: 1 });
            self.ask.send(PickRequest { kind: Some(wish) }).await.unwrap();
            self.answers.message().await.expect("another client's stream").expect("another client's stream");
            took.push(asked.elapsed());
            pause(Duration::from_millis(2)).await;
        }
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}
