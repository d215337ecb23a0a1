//! Who may order: whoever is on the balancer's own machine, and whoever shows the token. Reading is open to all who can
//! connect; who can is for TLS and the network to say.

use std::{net::SocketAddr, sync::Arc};

use lookaside_tls::{Error, Material, Reloading};
use subtle::ConstantTimeEq as _;
use tonic::{Code, Status, metadata::MetadataMap};

use crate::{
    config,
    convert::refused,
    limits::{TOKEN_BYTES_MAX, TOKEN_BYTES_MIN},
};

/// What a word of operators begins with.
const SCHEME: &str = "Bearer ";

/// The token of operators, as its file has it now.
#[derive(Debug, Clone)]
pub(crate) struct Token(Arc<Reloading<Vec<u8>>>);

impl Token {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or is too short to be a secret.
    pub(crate) fn load(token: &config::Token) -> Result<Self, Error> {
        let (material, place) = match token {
            config::Token::File(path) => (Material::File(path.clone()), path.display().to_string()),
            config::Token::Text(text) => {
                (Material::Text(text.clone().into_bytes()), "LOOKASIDE_ADMIN_TOKEN".to_owned())
            }
        };
        let make = move |texts: &[Vec<u8>]| parse(&place, texts.first().map_or(&[], Vec::as_slice));
        Ok(Self(Arc::new(Reloading::load("token of operators", vec![material], make)?)))
    }

    async fn is(&self, shown: &[u8]) -> bool {
        let token = Arc::clone(&self.0);
        // A disk that hangs is not to stop anybody else; an error means that the runtime ends.
        let _ = tokio::task::spawn_blocking(move || token.look()).await;
        // In a time that does not tell how much of it was right.
        self.0.current().ct_eq(shown).into()
    }
}

fn parse(place: &str, text: &[u8]) -> Result<Vec<u8>, Error> {
    let malformed = |reason: String| Error::Malformed { place: place.to_owned(), reason };
    let token = text.trim_ascii();
    if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
        let reason =
            format!("a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters; try: openssl rand -hex 32");
        return Err(malformed(reason));
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(malformed("a token is one word of ASCII characters".to_owned()));
    }
    Ok(token.to_vec())
}

/// Whether a request that orders something may.
pub(super) async fn may_order(
    token: Option<&Token>,
    peer: Option<SocketAddr>,
    metadata: &MetadataMap,
) -> Result<(), Status> {
    // Where a request comes from must be known to be trusted.
    if peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
        return Ok(());
    }
    let denied = |reason, words: &str| Err(refused(Code::PermissionDenied, reason, words, &[]));
    let Some(token) = token else {
        let words = "orders are taken from the balancer's own machine alone, since it has no token for others \
                     (admin.token_file, LOOKASIDE_ADMIN_TOKEN)";
        return denied("LOOPBACK_ONLY", words);
    };
    let shown = metadata.get("authorization").map(|value| value.as_bytes());
    match shown.and_then(|value| value.strip_prefix(SCHEME.as_bytes())) {
        None => denied("TOKEN_MISSING", "orders from another machine need the token of operators (--token-file)"),
        Some(shown) if token.is(shown).await => Ok(()),
        Some(_) => denied("TOKEN_WRONG", "this is not the token of operators"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    async fn asked(token: Option<&str>, peer: Option<&str>, shown: Option<&str>) -> String {
        let token = token.map(|text| Token::load(&config::Token::Text(text.to_owned())).unwrap());
        let mut metadata = MetadataMap::new();
        if let Some(shown) = shown {
            metadata.insert("authorization", shown.parse().unwrap());
        }
        match may_order(token.as_ref(), peer.map(|peer| peer.parse().unwrap()), &metadata).await {
            Ok(()) => "yes".to_owned(),
            Err(status) => {
                use tonic_types::StatusExt as _;
                assert_eq!(status.code(), Code::PermissionDenied);
                status.get_details_error_info().unwrap().reason
            }
        }
    }

    #[tokio::test]
    async fn orders_from_elsewhere_need_the_token_and_those_from_here_do_not() {
        let right = format!("Bearer {SECRET}");
        for here in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(asked(None, Some(here), None).await, "yes");
            assert_eq!(asked(Some(SECRET), Some(here), None).await, "yes");
        }
        for elsewhere in [Some("10.0.0.7:1"), Some("[2001:db8::1]:1"), None] {
            assert_eq!(asked(None, elsewhere, Some(&right)).await, "LOOPBACK_ONLY");
            assert_eq!(asked(Some(SECRET), elsewhere, None).await, "TOKEN_MISSING");
            assert_eq!(asked(Some(SECRET), elsewhere, Some(SECRET)).await, "TOKEN_MISSING");
            assert_eq!(asked(Some(SECRET), elsewhere, Some("Bearer ")).await, "TOKEN_WRONG");
            assert_eq!(asked(Some(SECRET), elsewhere, Some("Bearer 0123456789abcdeF")).await, "TOKEN_WRONG");
            assert_eq!(asked(Some(SECRET), elsewhere, Some(&right)).await, "yes");
        }
    }

    #[test]
    fn what_is_no_secret_is_no_token() {
        assert_eq!(parse("f", b" 0123456789abcdef\n").unwrap(), b"0123456789abcdef");
        for text in ["", "short", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
            assert!(parse("f", text.as_bytes()).unwrap_err().to_string().starts_with("f: a token"), "{text}");
        }
        assert!(parse("f", &[b'x'; TOKEN_BYTES_MAX + 1]).is_err());
        assert!(!format!("{:?}", config::Token::Text(SECRET.to_owned())).contains(SECRET));
    }
}
