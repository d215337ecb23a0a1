//! The end that is connected to: shows its certificate, and may want one of the client.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Error, Io, Look, Material, Reloading, Trouble, Validity, connect,
    pem::{self, cryptography},
};

/// How long a peer that was turned away may take to read that, and how much it may send meanwhile: 64 KiB.
const FAREWELL: Duration = Duration::from_millis(500);
const FAREWELL_READS: usize = 64;

/// Whether a client has to show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Who shows none is refused.
    #[default]
    Required,
    /// Who shows one must show a good one.
    Optional,
}

/// Takes connections over TLS 1.2 and 1.3. Cheap to clone; clones share what was read last.
#[derive(Debug, Clone)]
pub struct Acceptor {
    loaded: Arc<Reloading<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    validity: Validity,
}

/// Collects what an acceptor needs. Made by [`Acceptor::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until build()"]
pub struct AcceptorBuilder {
    certificate: Material,
    key: Material,
    client_cas: Vec<Material>,
    client_auth: ClientAuth,
}

impl Acceptor {
    /// One that shows this certificate (PEM, with its intermediates) and has this key. Files are read again when they
    /// change: connections made before go on, later ones see the new certificate.
    pub fn builder(certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> AcceptorBuilder {
        let file = |path: &Path| Material::File(path.to_owned());
        AcceptorBuilder {
            certificate: file(certificate.as_ref()),
            key: file(key.as_ref()),
            client_cas: Vec::new(),
            client_auth: ClientAuth::Required,
        }
    }

    /// Shakes hands. It is for the caller to bound the time.
    ///
    /// # Errors
    /// When the peer speaks no TLS, wants another protocol than HTTP/2, or shows no certificate that is good enough.
    pub async fn accept(&self, stream: TcpStream) -> Result<Io, Error> {
        connect::refresh(&self.loaded).await;
        let acceptor = TlsAcceptor::from(Arc::clone(&self.loaded.current().config));
        let stream = match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                farewell(stream).await;
                return Err(Error::of_handshake(&error, ""));
            }
        };
        if stream.get_ref().1.alpn_protocol() != Some(connect::H2) {
            return Err(Error::NotHttp2);
        }
        Ok(Io::secured(stream, Trouble::default()))
    }

    /// From when until when the certificate in use holds.
    pub fn validity(&self) -> Validity {
        self.loaded.current().validity.clone()
    }

    /// Looks whether the files have changed. New connections look by themselves: this is for who wants to know.
    pub fn look(&self) -> Look {
        self.loaded.look()
    }

    #[cfg(test)]
    pub(crate) fn loaded_look(&self) -> Look {
        self.loaded.look_at_once()
    }

    /// Why the newest files are not in use; `None` when they are.
    pub fn refused(&self) -> Option<String> {
        self.loaded.refused()
    }
}

impl AcceptorBuilder {
    /// Clients must show a certificate that this CA (PEM, one or more) has signed. May be said several times.
    pub fn client_ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.client_cas.push(Material::File(path.as_ref().to_owned()));
        self
    }

    /// Whether a client has to show one; it does, unless this says otherwise. Without a client CA nobody is asked.
    pub fn client_auth(mut self, client_auth: ClientAuth) -> Self {
        self.client_auth = client_auth;
        self
    }

    /// Reads the files. `what` is what logs call it.
    ///
    /// # Errors
    /// When a file cannot be read or is not what it should be, or certificate and key do not go together.
    pub fn build(self, what: impl Into<String>) -> Result<Acceptor, Error> {
        let Self { certificate, key, client_cas, client_auth } = self;
        let mut materials = vec![certificate, key];
        materials.extend(client_cas);
        let places: Vec<String> = materials.iter().map(Material::place).collect();
        let make = move |texts: &[Vec<u8>]| make(&places, texts, client_auth);
        Ok(Acceptor { loaded: Arc::new(Reloading::load(what, materials, make)?) })
    }
}

/// Lets the peer read why it was turned away: a connection that is closed while something of the peer's is unread takes the
/// last word back.
async fn farewell(mut stream: TcpStream) {
    let mut unread = [0; 1024];
    let read = async {
        stream.shutdown().await?;
        for _ in 0..FAREWELL_READS {
            if stream.read(&mut unread).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    // Whatever becomes of it, it was a courtesy.
    let _ = timeout(FAREWELL, read).await;
}

fn make(places: &[String], texts: &[Vec<u8>], client_auth: ClientAuth) -> Result<Loaded, Error> {
    let unusable = |error: &dyn std::error::Error| Error::Unusable(error.to_string());
    let ([certificate_at, key_at, ca_places @ ..], [certificate, key, cas @ ..]) = (places, texts) else {
        return Err(Error::Unusable("there is no certificate or no key".to_owned()));
    };
    let chain = pem::certificates(certificate_at, certificate)?;
    let validity = Validity::of(certificate_at, &chain)?;
    let key = pem::key(key_at, key)?;
    let builder = ServerConfig::builder_with_provider(cryptography())
        .with_protocol_versions(connect::VERSIONS)
        .map_err(|error| unusable(&error))?;
    let builder = if cas.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for (place, ca) in ca_places.iter().zip(cas) {
            pem::trust(&mut roots, place, ca)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), cryptography());
        let verifier = match client_auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![connect::H2.to_vec()];
    // A resumed session would be one with a peer whose certificate nobody looks at any more.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded { config: Arc::new(config), validity })
}
