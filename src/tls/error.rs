//! What can go wrong with a certificate or a handshake, in words for the person who has to mend it.

use std::{io, path::PathBuf};

use rustls::{AlertDescription, CertificateError};

use crate::io::Trouble;

/// Why there is no connection over TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to trust was named.
    #[error("no CA certificate is given, and those of the system are not used: name the file of your CA")]
    NoCa,
    /// A file that cannot be read.
    #[error("{}: {reason}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{place}: {reason}")]
    Malformed {
        /// The file, or what stands for one.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files are sound, but do not go together.
    #[error("certificate and key are of no use: {0}")]
    Unusable(String),
    /// Not a name that a certificate could be for.
    #[error("{0:?} is neither a DNS name nor an IP address, so that no certificate can be for it")]
    NotAName(String),
    /// No connection at all.
    #[error("tcp connect error: {0}")]
    Tcp(#[source] io::Error),
    /// The other end is somebody else.
    #[error("certificate is for {presented}, not for {expected}")]
    WrongName {
        /// What the certificate says.
        presented: String,
        /// What it was to say.
        expected: String,
    },
    /// The other end cannot prove who it is.
    #[error("its certificate is not to be trusted: {0}")]
    Untrusted(String),
    /// The other end wants to know who we are.
    #[error("it wants a client certificate, and none was shown")]
    ClientCertificateWanted,
    /// The other end does not take our certificate.
    #[error("it does not accept our certificate: {0}")]
    ClientCertificateRefused(String),
    /// A handshake that came to no agreement on HTTP/2.
    #[error("TLS without HTTP/2 (ALPN h2): something in between speaks another protocol")]
    NotHttp2,
    /// No TLS at all.
    #[error("it does not speak TLS: {0}")]
    NotTls(String),
    /// Any other end of a handshake.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
}

impl Error {
    /// The other end answered, and is not who it should be: trying again changes nothing until somebody mends it.
    pub fn is_about_identity(&self) -> bool {
        match self {
            Self::WrongName { .. }
            | Self::Untrusted(_)
            | Self::ClientCertificateWanted
            | Self::ClientCertificateRefused(_)
            | Self::NotAName(_) => true,
            Self::NoCa
            | Self::Unreadable { .. }
            | Self::Malformed { .. }
            | Self::Unusable(_)
            | Self::Tcp(_)
            | Self::NotHttp2
            | Self::NotTls(_)
            | Self::Handshake(_) => false,
        }
    }

    /// What a handshake that failed on this side was about.
    pub(crate) fn of_handshake(error: &io::Error, expected: &str) -> Self {
        match rustls_error(error) {
            Some(error) => Self::of_rustls(error, expected),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Handshake("it closed the connection, as a listener without TLS does".to_owned())
            }
            None => Self::Handshake(error.to_string()),
        }
    }

    fn of_rustls(error: &rustls::Error, expected: &str) -> Self {
        match error {
            rustls::Error::InvalidCertificate(reason) => Self::of_certificate(reason, expected),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert),
            rustls::Error::InvalidMessage(_) => Self::NotTls(error.to_string()),
            rustls::Error::NoApplicationProtocol => Self::NotHttp2,
            rustls::Error::NoCertificatesPresented => {
                Self::Handshake("the peer shows no client certificate".to_owned())
            }
            other => Self::Handshake(other.to_string()),
        }
    }

    fn of_certificate(reason: &CertificateError, expected: &str) -> Self {
        let expected = expected.to_owned();
        match reason {
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                let presented = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
                Self::WrongName { presented, expected }
            }
            CertificateError::NotValidForName => Self::WrongName { presented: "another name".to_owned(), expected },
            // The latter where another CA has the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::Untrusted("no CA that we were given has signed it".to_owned())
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Self::Untrusted("it has expired".to_owned())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::Untrusted("it is not valid yet".to_owned())
            }
            other => Self::Untrusted(other.to_string()),
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired => Self::ClientCertificateWanted,
            AlertDescription::NoApplicationProtocol => Self::NotHttp2,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => Self::ClientCertificateRefused(format!("{alert:?}")),
            other => Self::Handshake(format!("it sent the alert {other:?}")),
        }
    }

    /// An error of a connection that was made, in our words where TLS is what it is about. A peer that speaks TLS 1.3
    /// refuses our certificate only once the handshake is over for us.
    pub(crate) fn of_connection(error: io::Error, trouble: &Trouble) -> io::Error {
        match rustls_error(&error) {
            Some(inner) => {
                let ours = Self::of_rustls(inner, "");
                trouble.say(&ours);
                io::Error::new(error.kind(), ours)
            }
            None => error,
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The library's `DnsName("a.example")` as `a.example`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}
