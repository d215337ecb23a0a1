//! The end that connects: trusts the CAs it was given, verifies the name it was told, and may show a certificate of its own.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsConnector;

use crate::{
    Error, Io, Material, Reloading, Trouble,
    pem::{self, cryptography},
};

pub(crate) const H2: &[u8] = b"h2";
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// How long one address of a name is tried alone: a fifth of the time that the SDK gives a connection.
const HEAD_START: Duration = Duration::from_millis(200);

/// How to connect over TLS: whom to trust, and who we are. Cheap to clone; clones share what was read last. Files are read
/// again when they change: connections made before go on, later ones use what is new. Files that are of no use leave the
/// old ones in use, and an error in the log.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<Reloading<ClientConfig>>,
    name: Option<Arc<str>>,
}

/// Collects what connecting over TLS needs. Made by [`Tls::builder`].
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until build()"]
pub struct TlsBuilder {
    cas: Vec<Material>,
    identity: Option<(Material, Material)>,
    name: Option<Arc<str>>,
}

impl Tls {
    /// Starts to say whom to trust.
    pub fn builder() -> TlsBuilder {
        TlsBuilder::default()
    }

    /// The name that every peer has to show, whatever its address or a list says.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Shakes hands with a peer that has to show `name`: a DNS name or an IP address.
    async fn connect(&self, stream: TcpStream, name: &str, trouble: Trouble) -> Result<Io, Error> {
        let name = self.name().unwrap_or(name);
        let expected = ServerName::try_from(name.to_owned()).map_err(|_| Error::NotAName(name.to_owned()))?;
        refresh(&self.config).await;
        let connector = TlsConnector::from(self.config.current());
        let stream = connector.connect(expected, stream).await.map_err(|error| Error::of_handshake(&error, name))?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            return Err(Error::NotHttp2);
        }
        Ok(Io::secured(stream, trouble))
    }
}

/// Looks at the files if that is due, on a thread that may block. Only the connection that finds them due waits for them.
pub(crate) async fn refresh<T: Send + Sync + 'static>(reloading: &Arc<Reloading<T>>) {
    if reloading.is_due() {
        let reloading = Arc::clone(reloading);
        // An error means that the runtime ends, and the connection with it.
        let _ = tokio::task::spawn_blocking(move || reloading.look()).await;
    }
}

impl TlsBuilder {
    /// Trusts this CA (PEM, one or more certificates). May be said several times, and must be said once: the roots of the
    /// system are not used.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.cas.push(Material::File(path.as_ref().to_owned()));
        self
    }

    /// Trusts the CA in this text (PEM, one or more certificates).
    pub fn ca_pem(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.cas.push(Material::Text(text.into()));
        self
    }

    /// Shows this certificate (PEM, with its intermediates) to peers that ask for one.
    pub fn identity_files(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        let file = |path: &Path| Material::File(path.to_owned());
        self.identity = Some((file(certificate.as_ref()), file(key.as_ref())));
        self
    }

    /// Every peer has to show this name, whatever its address or a list says: for balancers that are reached by addresses
    /// that their certificates do not name.
    pub fn expect_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Reads the files.
    ///
    /// # Errors
    /// When no CA was named, a file cannot be read or is not what it should be, or certificate and key do not go together.
    pub fn build(self) -> Result<Tls, Error> {
        let Self { cas, identity, name } = self;
        if cas.is_empty() {
            return Err(Error::NoCa);
        }
        let has_identity = identity.is_some();
        let mut materials: Vec<Material> =
            identity.into_iter().flat_map(|(certificate, key)| [certificate, key]).collect();
        materials.extend(cas);
        let places: Vec<String> = materials.iter().map(Material::place).collect();
        let what = format!("TLS with {}", places.join(", "));
        let make = move |texts: &[Vec<u8>]| make(&places, texts, has_identity);
        Ok(Tls { config: Arc::new(Reloading::load(what, materials, make)?), name })
    }
}

fn make(places: &[String], texts: &[Vec<u8>], has_identity: bool) -> Result<ClientConfig, Error> {
    let unusable = |error: rustls::Error| Error::Unusable(error.to_string());
    let (identity, cas) = texts.split_at(if has_identity { 2 } else { 0 });
    let (identity_places, ca_places) = places.split_at(identity.len());
    let mut roots = RootCertStore::empty();
    for (place, ca) in ca_places.iter().zip(cas) {
        pem::trust(&mut roots, place, ca)?;
    }
    let builder = ClientConfig::builder_with_provider(cryptography())
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?
        .with_root_certificates(roots);
    let mut config = match (identity_places, identity) {
        ([certificate_at, key_at], [certificate, key]) => {
            let chain = pem::certificates(certificate_at, certificate)?;
            builder.with_client_auth_cert(chain, pem::key(key_at, key)?).map_err(unusable)?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Connects to `host:port`, over TLS when it is given; the peer then has to show the name beside it, and the host of the
/// address where that is empty. It is for the caller to bound the time.
///
/// # Errors
/// When there is no connection, or the peer is not who it should be.
pub async fn dial(address: &str, tls: Option<(&Tls, &str)>) -> Result<Io, Error> {
    dial_telling(address, tls, Trouble::default()).await
}

async fn dial_telling(address: &str, tls: Option<(&Tls, &str)>, trouble: Trouble) -> Result<Io, Error> {
    let addresses = lookup_host(address).await.map_err(Error::Tcp)?.collect();
    let stream = connect_any(addresses).await.map_err(Error::Tcp)?;
    // Frames are small and waited for.
    stream.set_nodelay(true).map_err(Error::Tcp)?;
    match tls {
        None => Ok(Io::Plain(stream)),
        Some((tls, "")) => tls.connect(stream, host(address), trouble).await,
        Some((tls, name)) => tls.connect(stream, name, trouble).await,
    }
}

/// Connects to whichever of these is there first. The next one is tried as soon as one fails, and beside one that is silent:
/// a name whose first address is dead must not take all the time there is.
pub(crate) async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failed = error,
                // The runtime ends.
                Some(Err(error)) => failed = io::Error::other(error),
                None => return Err(failed),
            },
            () = sleep(HEAD_START), if addresses.len() > 0 => {}
        }
    }
}

/// Whether a connection to `host:port` stays on this machine.
pub fn is_loopback(address: &str) -> bool {
    let host = host(address);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Without its port, and without the brackets of IPv6.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host)
}

/// Makes the connections of a tonic `Channel`, plain or over TLS.
#[derive(Debug, Clone)]
pub struct Connector {
    tls: Option<Tls>,
    name: Arc<str>,
    trouble: Trouble,
}

impl Connector {
    /// For a peer that people call `name`, `host:port`, wherever the channel connects to: with `tls` it has to show that
    /// host. Plain without `tls`.
    pub fn new(tls: Option<Tls>, name: &str) -> Self {
        Self { tls, name: name.into(), trouble: Trouble::default() }
    }

    /// What TLS has to say when its connection breaks, of the first one that does: with TLS 1.3 a peer refuses our
    /// certificate only when the channel is in use.
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// What requests are to name as their origin. The channel itself is to be made for `http://host:port` always: with a
    /// TLS of its own compiled in, tonic would want to use that one.
    pub fn origin(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.name)
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let Self { tls, name, trouble } = self.clone();
        Box::pin(async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            let tls = tls.as_ref().map(|tls| (tls, host(&name)));
            Ok(TokioIo::new(dial_telling(address, tls, trouble).await?))
        })
    }
}
