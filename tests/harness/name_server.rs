//! A name server that says what a test tells it to: real packets over UDP and TCP, on a port of the kernel's choice. What
//! a test has not told it does not exist.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "for tests alone, of two crates")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_server::{
    Server,
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Header, HeaderCounts, Metadata, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, AAAA, SRV},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::net::{TcpListener, UdpSocket};

/// What is said when somebody asks.
#[derive(Debug, Clone)]
pub enum Says {
    /// These records, and those that are not asked for besides.
    Records(Vec<Record>, Vec<Record>),
    /// No records and a code.
    Code(ResponseCode),
    /// Nothing at all.
    Silence,
}

/// Questions heard so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Questions {
    /// By datagram.
    pub udp: u64,
    /// By connection.
    pub tcp: u64,
}

/// The name server. Dropped, it is gone.
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _server: Server<Zones>,
}

#[derive(Default)]
struct Zone {
    says: BTreeMap<(String, RecordType), Says>,
    questions: Questions,
}

struct Zones(Arc<Mutex<Zone>>);

impl NameServer {
    /// Starts one that knows no name.
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Somebody else may have the same port for connections.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let mut server = Server::new(Zones(Arc::clone(&zone)));
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 64);
        Self { address, zone, _server: server }
    }

    /// From here on this is what is said about a name.
    pub fn say(&self, name: &str, kind: RecordType, says: Says) {
        self.zone.lock().unwrap().says.insert((name.to_owned(), kind), says);
    }

    /// Questions heard so far.
    pub fn questions(&self) -> Questions {
        self.zone.lock().unwrap().questions
    }
}

/// Addresses of a name; IPv4 or IPv6, not both.
pub fn addresses(name: &str, life: u32, addresses: &[IpAddr]) -> Says {
    Says::Records(address_records(name, life, addresses), Vec::new())
}

/// The same as records.
pub fn address_records(name: &str, life: u32, addresses: &[IpAddr]) -> Vec<Record> {
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    };
    addresses.iter().map(|address| Record::from_rdata(Name::from_ascii(name).unwrap(), life, data(address))).collect()
}

/// SRV records of a name: priority, weight, port, target.
pub fn srv_records(name: &str, life: u32, targets: &[(u16, u16, u16, &str)]) -> Vec<Record> {
    let record = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
        let data = SRV::new(*priority, *weight, *port, Name::from_ascii(target).unwrap());
        Record::from_rdata(Name::from_ascii(name).unwrap(), life, RData::SRV(data))
    };
    targets.iter().map(record).collect()
}

#[async_trait::async_trait]
impl RequestHandler for Zones {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let query = request.request_info().unwrap().query;
        let name = query.name().to_string().to_lowercase();
        let says = {
            let mut zone = self.0.lock().unwrap();
            match request.protocol() {
                Protocol::Udp => zone.questions.udp += 1,
                _ => zone.questions.tcp += 1,
            }
            let is_known = zone.says.keys().any(|(known, _)| *known == name);
            let nothing = if is_known { ResponseCode::NoError } else { ResponseCode::NXDomain };
            zone.says.get(&(name, query.query_type())).cloned().unwrap_or(Says::Code(nothing))
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let (answers, additionals) = match says {
            Says::Silence => return ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() }),
            Says::Code(code) => {
                metadata.response_code = code;
                (Vec::new(), Vec::new())
            }
            Says::Records(answers, additionals) => (answers, additionals),
        };
        let builder = MessageResponseBuilder::from_message_request(request);
        let none: [Record; 0] = [];
        response.send_response(builder.build(metadata, &answers, &none, &none, &additionals)).await.unwrap()
    }
}
