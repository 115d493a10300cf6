//! A tail's address, and the paths below it.

use headway_model::quantization::Quantization;
use reqwest::Url;

use crate::error::RequestError;

/// The base of all URLs of one tail, or of the Service before several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TailUrl {
    /// With scheme `http` or `https` and a path that ends in `/`.
    http: Url,
    /// The same with scheme `ws` or `wss`.
    ws: Url,
}

impl TailUrl {
    /// Reads `ws://HOST:PORT`, `wss://HOST/PREFIX`, or the same with `http` and `https`.
    pub(crate) fn parse(text: &str) -> Result<Self, RequestError> {
        let refuse = |reason: String| RequestError::TailUrl {
            url: text.to_owned(),
            reason,
        };
        let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
        let (http, ws) = match url.scheme() {
            "ws" | "http" => ("http", "ws"),
            "wss" | "https" => ("https", "wss"),
            scheme => return Err(refuse(format!("its scheme is {scheme:?}"))),
        };
        if url.host_str().is_none_or(str::is_empty) {
            return Err(refuse("it names no host".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("it has a query or a fragment".to_owned()));
        }
        // The scheme is put in front of the rest as text: `Url::set_scheme` refuses some of these changes.
        let rest = url
            .as_str()
            .split_once("://")
            .map_or("", |(_, rest)| rest)
            .trim_end_matches('/');
        let with_scheme = |scheme: &str| {
            Url::parse(&format!("{scheme}://{rest}/")).map_err(|error| refuse(error.to_string()))
        };
        Ok(Self {
            http: with_scheme(http)?,
            ws: with_scheme(ws)?,
        })
    }

    /// As it can be read again.
    pub(crate) fn as_str(&self) -> &str {
        self.ws.as_str()
    }

    /// Whether TLS is needed.
    pub(crate) fn is_tls(&self) -> bool {
        self.http.scheme() == "https"
    }

    /// Whether it is this machine's own.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.http.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        host == "localhost" || address.is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }

    pub(crate) fn session(&self) -> Url {
        below(&self.ws, "v1/session")
    }

    pub(crate) fn manifest(&self) -> Url {
        below(&self.http, "v1/model")
    }

    pub(crate) fn load(&self) -> Url {
        below(&self.http, "v1/load")
    }

    pub(crate) fn on_device_answers(&self) -> Url {
        below(&self.http, "v1/on-device-answers")
    }

    pub(crate) fn tokenizer(&self, model_digest: &str) -> Url {
        of_model(below(&self.http, "v1/tokenizer"), model_digest)
    }

    /// The list of the parts for layers `[0, split_layer)`.
    pub(crate) fn head_parts(
        &self,
        model_digest: &str,
        quantization: Quantization,
        split_layer: usize,
    ) -> Url {
        let mut url = below(&self.http, &format!("v1/head/{quantization}"));
        url.query_pairs_mut()
            .append_pair("layers", &format!("0-{split_layer}"));
        of_model(url, model_digest)
    }

    pub(crate) fn head_part(
        &self,
        model_digest: &str,
        quantization: Quantization,
        part: &str,
    ) -> Url {
        let url = below(&self.http, &format!("v1/head/{quantization}/{part}"));
        of_model(url, model_digest)
    }
}

/// `url` of a part of one model: behind one address there may be tails of two.
fn of_model(mut url: Url, model_digest: &str) -> Url {
    url.query_pairs_mut().append_pair("model", model_digest);
    url
}

/// `path` has no leading slash and comes from this file or from a checked part name, so it always joins.
fn below(base: &Url, path: &str) -> Url {
    base.join(path).unwrap_or_else(|_| base.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websocket_schemes_map_to_http_and_back() {
        for (text, http, ws) in [
            (
                "ws://host:80",
                "http://host/v1/model",
                "ws://host/v1/session",
            ),
            (
                "ws://127.0.0.1:8080/",
                "http://127.0.0.1:8080/v1/model",
                "ws://127.0.0.1:8080/v1/session",
            ),
            (
                "wss://host/team/a",
                "https://host/team/a/v1/model",
                "wss://host/team/a/v1/session",
            ),
            (
                "https://host:8443",
                "https://host:8443/v1/model",
                "wss://host:8443/v1/session",
            ),
        ] {
            let url = TailUrl::parse(text).unwrap();
            assert_eq!(url.manifest().as_str(), http, "{text}");
            assert_eq!(url.session().as_str(), ws, "{text}");
        }
    }

    #[test]
    fn the_head_parts_of_a_split_layer_are_a_range_of_layers() {
        let url = TailUrl::parse("ws://host:1").unwrap();
        assert_eq!(
            url.head_parts("sha256:ab", Quantization::Q4K, 10).as_str(),
            "http://host:1/v1/head/q4_k?layers=0-10&model=sha256%3Aab"
        );
        assert_eq!(
            url.head_part("sha256:ab", Quantization::None, "layer-7")
                .as_str(),
            "http://host:1/v1/head/none/layer-7?model=sha256%3Aab"
        );
    }

    #[test]
    fn an_address_without_a_scheme_says_what_would_be_right() {
        for text in [
            "localhost:8080",
            "host",
            "ftp://host",
            "ws://",
            "ws://host?x=1",
        ] {
            let error = TailUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains("ws://HOST:PORT"), "{text}: {error}");
        }
    }
}
