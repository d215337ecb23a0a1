//! Certificates and keys out of PEM. What comes out is sound by itself; whether it goes together is for others to find.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::Error;

/// Certificates in one file: a chain has a handful, a bundle of CAs a few hundred. Beyond this the file is refused.
const CERTIFICATES_MAX: usize = 1_000;

/// The cryptography of everything here.
pub(crate) fn cryptography() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// All certificates of a text, at least one; `place` is what errors call it.
pub(crate) fn certificates(place: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let malformed = |reason: String| Error::Malformed { place: place.to_owned(), reason };
    let mut all = Vec::new();
    for one in CertificateDer::pem_slice_iter(text) {
        all.push(one.map_err(|error| malformed(format!("not PEM: {error}")))?);
        if all.len() > CERTIFICATES_MAX {
            return Err(malformed(format!("more than {CERTIFICATES_MAX} certificates")));
        }
    }
    if all.is_empty() {
        return Err(malformed("it holds no PEM certificate".to_owned()));
    }
    Ok(all)
}

/// The private key of a text.
pub(crate) fn key(place: &str, text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    let malformed = |_| Error::Malformed { place: place.to_owned(), reason: "it holds no PEM private key".to_owned() };
    PrivateKeyDer::from_pem_slice(text).map_err(malformed)
}

/// Adds the CAs of a text to those that are trusted.
pub(crate) fn trust(roots: &mut RootCertStore, place: &str, text: &[u8]) -> Result<(), Error> {
    for ca in certificates(place, text)? {
        let malformed = |error| Error::Malformed { place: place.to_owned(), reason: format!("not a CA: {error}") };
        roots.add(ca).map_err(malformed)?;
    }
    Ok(())
}
