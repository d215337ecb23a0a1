use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

use super::{reload::FILE_BYTES_MAX, *};

/// A folder of its own, with a CA and what it signed.
struct Folder {
    path: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lookaside-tls-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        let folder = Self { ca: ca(), path };
        fs::write(folder.at("ca.crt"), folder.ca.pem()).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Signs a certificate for these names, alive for this long.
    fn sign(&self, file: &str, names: &[&str], life: Duration) {
        let (certificate, key) = signed(&self.ca, names, life);
        fs::write(self.at(&format!("{file}.crt")), certificate).unwrap();
        fs::write(self.at(&format!("{file}.key")), key).unwrap();
    }

    fn tls(&self) -> TlsBuilder {
        Tls::builder().ca_file(self.at("ca.crt"))
    }

    fn acceptor(&self, file: &str) -> AcceptorBuilder {
        Acceptor::builder(self.at(&format!("{file}.crt")), self.at(&format!("{file}.key")))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(ca: &CertifiedIssuer<'static, KeyPair>, names: &[&str], life: Duration) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(60) + life).into();
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

const HOUR: Duration = Duration::from_secs(3600);

/// Echoes one byte per connection over TLS, for as long as the test runs.
async fn echo(acceptor: Acceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Ok(byte) = stream.read_u8().await {
                    stream.write_u8(byte).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    address
}

async fn exchange(stream: &mut Io) -> std::io::Result<u8> {
    stream.write_u8(7).await?;
    stream.flush().await?;
    stream.read_u8().await
}

async fn refusal(address: SocketAddr, tls: &Tls, name: &str) -> String {
    match dial(&address.to_string(), Some((tls, name))).await {
        Ok(mut stream) => exchange(&mut stream).await.unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_name_is_verified_whether_from_a_list_or_from_the_address() {
    let folder = Folder::new();
    folder.sign("a", &["a.example", "127.0.0.1"], HOUR);
    let address = echo(folder.acceptor("a").build("a").unwrap()).await;
    let tls = folder.tls().build().unwrap();
    for name in ["a.example", ""] {
        let mut stream = dial(&address.to_string(), Some((&tls, name))).await.unwrap();
        assert_eq!(exchange(&mut stream).await.unwrap(), 7);
        assert!(stream.is_tls() && stream.tcp().peer_addr().unwrap() == address);
    }
    let wrong = refusal(address, &tls, "b.example").await;
    assert_eq!(wrong, "certificate is for a.example, 127.0.0.1, not for b.example");
    let nonsense = dial(&address.to_string(), Some((&tls, "not a name"))).await.unwrap_err();
    assert!(matches!(nonsense, Error::NotAName(_)) && nonsense.is_about_identity(), "{nonsense}");
    let pinned = folder.tls().expect_name("a.example").build().unwrap();
    assert!(dial(&address.to_string(), Some((&pinned, "b.example"))).await.is_ok());
}

#[tokio::test]
async fn who_is_not_to_be_trusted_is_refused_in_words() {
    let folder = Folder::new();
    let stranger = Folder::new();
    stranger.sign("a", &["a.example"], HOUR);
    folder.sign("old", &["a.example"], Duration::from_secs(30));
    let tls = folder.tls().build().unwrap();
    let foreign = echo(stranger.acceptor("a").build("a").unwrap()).await;
    assert!(refusal(foreign, &tls, "a.example").await.contains("no CA that we were given has signed it"));
    let old = echo(folder.acceptor("old").build("old").unwrap()).await;
    assert!(refusal(old, &tls, "a.example").await.contains("it has expired"));
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    assert!(refusal(address, &tls, "a.example").await.contains("does not speak TLS"));
}

#[tokio::test]
async fn a_client_certificate_is_wanted_where_a_client_ca_is_given() {
    let folder = Folder::new();
    folder.sign("a", &["a.example"], HOUR);
    folder.sign("client", &["client.example"], HOUR);
    let stranger = Folder::new();
    stranger.sign("client", &["client.example"], HOUR);
    let required = || folder.acceptor("a").client_ca_file(folder.at("ca.crt"));
    let address = echo(required().build("a").unwrap()).await;
    let known = folder.tls().identity_files(folder.at("client.crt"), folder.at("client.key")).build().unwrap();
    let mut stream = dial(&address.to_string(), Some((&known, "a.example"))).await.unwrap();
    assert_eq!(exchange(&mut stream).await.unwrap(), 7);
    let nobody = folder.tls().build().unwrap();
    assert!(refusal(address, &nobody, "a.example").await.contains("it wants a client certificate"));
    let foreign = folder.tls().identity_files(stranger.at("client.crt"), stranger.at("client.key")).build().unwrap();
    assert!(refusal(address, &foreign, "a.example").await.contains("it does not accept our certificate"));
    let optional = echo(required().client_auth(ClientAuth::Optional).build("a").unwrap()).await;
    let mut stream = dial(&optional.to_string(), Some((&nobody, "a.example"))).await.unwrap();
    assert_eq!(exchange(&mut stream).await.unwrap(), 7);
    assert!(refusal(optional, &foreign, "a.example").await.contains("it does not accept our certificate"));
}

#[tokio::test]
async fn new_files_are_for_new_connections_and_broken_ones_for_none() {
    let folder = Folder::new();
    folder.sign("a", &["a.example"], HOUR);
    let acceptor = folder.acceptor("a").build("a").unwrap();
    let address = echo(acceptor.clone()).await;
    let tls = folder.tls().build().unwrap();
    let mut before = dial(&address.to_string(), Some((&tls, "a.example"))).await.unwrap();
    assert_eq!(exchange(&mut before).await.unwrap(), 7);
    assert_eq!(acceptor.loaded_look(), Look::Same);

    // A key without its certificate: said at the second look, for files are seldom replaced in one instant.
    let good = fs::read(folder.at("a.key")).unwrap();
    fs::write(folder.at("a.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert_eq!([acceptor.loaded_look(), acceptor.loaded_look()], [Look::Same, Look::Refused]);
    assert_eq!(acceptor.loaded_look(), Look::Same, "said once");
    assert!(acceptor.refused().unwrap().contains("certificate and key"), "{:?}", acceptor.refused());
    assert!(dial(&address.to_string(), Some((&tls, "a.example"))).await.is_ok());
    fs::remove_file(folder.at("a.key")).unwrap();
    assert_eq!([acceptor.loaded_look(), acceptor.loaded_look()], [Look::Same, Look::Refused]);
    assert!(acceptor.refused().unwrap().contains("a.key"));
    fs::write(folder.at("a.key"), good).unwrap();
    assert_eq!(acceptor.loaded_look(), Look::Same);
    assert_eq!(acceptor.refused(), None);

    folder.sign("a", &["b.example"], HOUR);
    assert_eq!(acceptor.loaded_look(), Look::Taken);
    assert_eq!(acceptor.validity().names, ["b.example"]);
    assert!(refusal(address, &tls, "a.example").await.contains("certificate is for b.example"));
    assert!(dial(&address.to_string(), Some((&tls, "b.example"))).await.is_ok());
    assert_eq!(exchange(&mut before).await.unwrap(), 7, "the connection made before goes on");
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_but_who_reads() {
    let folder = Folder::new();
    let path = folder.at("ca.crt");
    let take = |texts: &[Vec<u8>]| Ok(texts[0].clone());
    let reloading = Arc::new(Reloading::load("x", vec![Material::File(path.clone())], take).unwrap());
    // A pipe is a file that is not read before somebody writes.
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let reads = reloading.clone();
    let reads = thread::spawn(move || reads.look_at_once());
    let mut pipe = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let (tell, told) = mpsc::channel();
    let asks = reloading.clone();
    thread::spawn(move || tell.send((asks.is_due(), asks.refused(), asks.look())));
    assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok((false, None, Look::Same)));
    pipe.write_all(b"new").unwrap();
    drop(pipe);
    assert_eq!(reads.join().unwrap(), Look::Taken);
    assert_eq!(*reloading.current(), b"new");
}

#[tokio::test]
async fn files_of_no_use_are_refused_by_name_at_the_start() {
    let folder = Folder::new();
    folder.sign("a", &["a.example"], HOUR);
    folder.sign("b", &["b.example"], HOUR);
    let why = |result: Result<Tls, Error>| result.unwrap_err().to_string();
    assert!(why(Tls::builder().build()).contains("no CA certificate is given"));
    assert!(why(Tls::builder().ca_file("/nowhere/ca.crt").build()).starts_with("/nowhere/ca.crt: "));
    assert!(why(Tls::builder().ca_pem("nonsense").build()).contains("no PEM certificate"));
    let mixed = folder.tls().identity_files(folder.at("a.crt"), folder.at("b.key"));
    assert!(why(mixed.build()).contains("certificate and key are of no use"));
    let swapped = Acceptor::builder(folder.at("a.key"), folder.at("a.crt")).build("a").unwrap_err();
    assert!(swapped.to_string().contains("a.key: it holds no PEM certificate"), "{swapped}");
    let large = folder.at("large.crt");
    fs::write(&large, vec![b'x'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(why(Tls::builder().ca_file(&large).build()).contains("more than 1048576 bytes"));
}

#[test]
fn a_certificate_tells_how_long_it_holds_and_for_whom() {
    let folder = Folder::new();
    folder.sign("a", &["a.example", "10.0.0.1", "::1"], Duration::from_secs(100));
    let acceptor = folder.acceptor("a").build("a").unwrap();
    let validity = acceptor.validity();
    assert_eq!(validity.names, ["a.example", "10.0.0.1", "::1"]);
    let at = |seconds| validity.not_before + Duration::from_secs(seconds);
    assert_eq!((validity.seconds_left(at(75)), validity.share_left(at(75))), (25.0, 0.25));
    assert_eq!((validity.seconds_left(at(130)), validity.share_left(at(130))), (-30.0, 0.0));
}

#[tokio::test]
async fn an_address_that_is_dead_does_not_keep_the_others_of_its_name_waiting() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let dead = full.local_addr().unwrap();
    // Who comes to a full queue is not answered.
    let mut queue = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(100), TcpStream::connect(dead)).await {
        queue.push(connected.unwrap());
    }
    let fine = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let found = connect::connect_any(vec![dead, refusing, dead, fine.local_addr().unwrap()]);
    let found = timeout(Duration::from_millis(900), found).await.expect("in less than a second");
    assert_eq!(found.unwrap().peer_addr().unwrap(), fine.local_addr().unwrap());
    let error = connect::connect_any(vec![refusing, refusing]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn loopback_is_told_by_the_address() {
    for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
        assert!(is_loopback(address), "{address}");
    }
    for address in ["10.0.0.1:1", "[fe80::1]:1", "lb-0:1", "localhost.example:1", ""] {
        assert!(!is_loopback(address), "{address}");
    }
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let text = Material::Text(b"secret".to_vec());
    assert_eq!(format!("{text:?}"), "a PEM text");
    assert_eq!(format!("{:?}", Material::File(Path::new("/a").to_owned())), "/a");
}
