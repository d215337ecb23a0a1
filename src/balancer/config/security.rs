//! Who may listen in, and who may order: TLS of the listeners, plaintext where it was allowed in so many words, and the
//! token of operators. Reads no file: that is for those who use them.

use std::{fmt, net::SocketAddr, path::PathBuf};

use lookaside_tls::ClientAuth;

use super::Listen;

/// How the listeners are secured. The default is what is safe on loopback alone.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Security {
    /// TLS of the client listener; `None` is plaintext.
    pub client: Option<ListenerTls>,
    /// TLS of the admin listener; `None` is plaintext.
    pub admin: Option<ListenerTls>,
    /// Listeners that may be in plaintext where others reach them.
    pub allow_plaintext: AllowPlaintext,
    /// What operators who are not on the balancer's own machine show; `None` lets them order nothing.
    pub token: Option<Token>,
}

/// The certificate of a listener, and whose certificates it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM, with its intermediates.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// Peers show a certificate that one of these (PEM) has signed; `None` asks nobody.
    pub client_ca: Option<PathBuf>,
    /// Whether a peer has to.
    pub client_auth: ClientAuth,
}

/// Which listeners may be in plaintext off loopback.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AllowPlaintext {
    /// The client listener.
    pub client: bool,
    /// The admin listener.
    pub admin: bool,
}

/// The token of operators.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// In a file, read again when it changes.
    File(PathBuf),
    /// Itself, out of an environment variable.
    Text(String),
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Text(_) => formatter.write_str("Text"),
        }
    }
}

impl Security {
    /// Each part in words: what cannot change while a balancer runs. What is in the files can.
    pub(super) fn told(&self) -> [(&'static str, String); 4] {
        let listener = |tls: &Option<ListenerTls>| match tls {
            None => "none".to_owned(),
            Some(ListenerTls { cert, key, client_ca, client_auth }) => {
                let asked = client_ca.as_ref().map(|ca| format!(", client_ca {} {client_auth:?}", ca.display()));
                format!("cert {}, key {}{}", cert.display(), key.display(), asked.unwrap_or_default())
            }
        };
        let AllowPlaintext { client, admin } = self.allow_plaintext;
        let plaintext: Vec<_> = [("client", client), ("admin", admin)]
            .iter()
            .filter(|(_, allowed)| *allowed)
            .map(|(name, _)| *name)
            .collect();
        let token = match &self.token {
            Some(Token::File(path)) => path.display().to_string(),
            // Not of the file.
            Some(Token::Text(_)) | None => "none".to_owned(),
        };
        [
            ("tls.client", listener(&self.client)),
            ("tls.admin", listener(&self.admin)),
            ("listen.allow_plaintext", format!("[{}]", plaintext.join(", "))),
            ("admin.token_file", token),
        ]
    }

    /// Listeners that others reach, and everybody on the way listens in, without a word that this is meant. The metrics
    /// listener is none of them: it shows numbers and names of services, takes no orders, and is what Prometheus and
    /// the probes of Kubernetes ask from elsewhere.
    pub fn exposed(&self, listen: &Listen) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let listeners = [
            ("client", listen.client, self.client.is_some() || self.allow_plaintext.client),
            ("admin", listen.admin, self.admin.is_some() || self.allow_plaintext.admin),
        ];
        let exposed = listeners.into_iter().filter(|(_, at, meant)| !meant && !at.ip().to_canonical().is_loopback());
        exposed.map(|(listener, at, _)| (listener, at))
    }
}

/// What is wrong with a listener that is exposed, and what would be right.
pub fn exposed_reason(listener: &str, address: SocketAddr) -> String {
    format!(
        "the {listener} listener at {address} can be reached by others and has no TLS: give tls.{listener} a certificate, \
         or listen on 127.0.0.1, or allow it in so many words, listen.allow_plaintext: [{listener}]"
    )
}
