//! Where the schemas of messages are kept: a schema registry that speaks Confluent's REST, or a fixed set.
//!
//! A message names its writer's schema by a number. What a number stands for never changes, so every schema is asked
//! for once and kept. A registry that does not answer is asked again a few times within a second or two; then the query
//! fails and can be started again. Only an answer that says so makes a number unknown: a page of some other server must
//! not turn every message into a bad one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tidewater::error::{Error, ErrorKind, Result};
use tidewater::executor::block_in_place;
use url::{Host, Url};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// How long to wait before asking again.
const WAITS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900)];

/// The media types of answers, the registry's own first.
const ACCEPT: &str = "application/vnd.schemaregistry.v1+json, application/json";

/// The registry's error codes for "no such schema".
const NOT_FOUND: std::ops::RangeInclusive<u64> = 40_400..=40_499;

/// Knows the schemas of Avro messages by their ids. Clones share what they have learnt.
///
/// ```
/// use tidewater_connectors::formats::{Format, SchemaRegistry};
///
/// let order = r#"{"type":"record","name":"Order","fields":[{"name":"id","type":"long"}]}"#;
/// let registry = SchemaRegistry::http("http://registry:8081")?.basic_auth("reader", "its password");
/// let format = Format::avro(order, registry)?;
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Clone)]
pub struct SchemaRegistry {
    place: Place,
    known: Arc<Mutex<BTreeMap<u32, Arc<str>>>>,
}

#[derive(Clone)]
enum Place {
    Server(Server),
    /// What is known is all there is.
    Fixed,
}

#[derive(Clone)]
struct Server {
    /// Without user, password and the last slash.
    url: String,
    agent: ureq::Agent,
    /// The header, a secret.
    authorization: Option<String>,
}

impl SchemaRegistry {
    /// The registry at this URL: Confluent's own, or one that is compatible with it. Nothing is asked yet. The URL may
    /// hold user and password. Proxies are taken from the environment, as other programs do. `https` needs the feature
    /// `kafka-ssl`; certificates are checked against those that the system trusts.
    pub fn http(url: &str) -> Result<Self> {
        // Of the URL itself nothing is repeated: it may hold a password.
        let wrong = |why: &str| {
            Error::invalid(format!("the URL of the schema registry cannot be used: {why}"))
                .with_hint("give one like `http://registry:8081`")
        };
        let mut url = Url::parse(url).map_err(|e| wrong(&e.to_string()))?;
        match url.scheme() {
            "http" => {}
            "https" if cfg!(feature = "kafka-ssl") => {}
            "https" => {
                return Err(Error::invalid("this program was built without TLS, which `https` needs").with_hint(
                    "build it with the feature `kafka-ssl`, or let the schema registry be reached by `http`",
                ));
            }
            _ => return Err(wrong("it is neither `http` nor `https`")),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has more than a host and a path"));
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = decoded(url.username());
        let password = url.password().map(decoded);
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(wrong("it names no host"));
        }
        let agent = agent(&url);
        let server = Server { url: url.as_str().trim_end_matches('/').to_owned(), agent, authorization: None };
        let registry = SchemaRegistry { place: Place::Server(server), known: Arc::default() };
        Ok(match password {
            None if user.is_empty() => registry,
            password => registry.basic_auth(&user, &password.unwrap_or_default()),
        })
    }

    /// A fixed set of schemas, each with its id, as JSON. For tests, and for where there is no registry.
    pub fn of<S: Into<String>>(schemas: impl IntoIterator<Item = (u32, S)>) -> Self {
        let known = schemas.into_iter().map(|(id, schema)| (id, Arc::<str>::from(Into::<String>::into(schema))));
        SchemaRegistry { place: Place::Fixed, known: Arc::new(Mutex::new(known.collect())) }
    }

    /// Says who asks, by HTTP's basic authentication.
    #[must_use]
    pub fn basic_auth(mut self, user: &str, password: &str) -> Self {
        if let Place::Server(server) = &mut self.place {
            server.authorization = Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))));
        }
        self
    }

    /// The schema with this id, as JSON.
    pub fn schema(&self, id: u32) -> Result<String> {
        match self.find(id)? {
            Ok(schema) => Ok(schema.to_string()),
            Err(why) => Err(Error::invalid(why)),
        }
    }

    /// The schema with this id, or why messages cannot have it. The outer error is the registry's.
    pub(super) fn find(&self, id: u32) -> Result<Result<Arc<str>, String>> {
        if let Some(schema) = self.known.lock().get(&id) {
            return Ok(Ok(Arc::clone(schema)));
        }
        let Place::Server(server) = &self.place else { return Ok(Err(format!("no schema has the id {id}"))) };
        let found = server.find(id)?;
        if let Ok(schema) = &found {
            self.known.lock().insert(id, Arc::clone(schema));
        }
        Ok(found)
    }
}

/// Shows where it is, and nothing that is secret.
impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Server(server) => f.debug_tuple("SchemaRegistry").field(&server.url).finish(),
            Place::Fixed => f.debug_tuple("SchemaRegistry").field(&self.known.lock().keys()).finish(),
        }
    }
}

fn agent(url: &Url) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_WITHIN))
        .timeout_global(Some(ANSWER_WITHIN))
        .http_status_as_error(false)
        // A registry has no reason to send us elsewhere, and elsewhere is not to hear the password.
        .max_redirects(0);
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    // No proxy reaches what is on this machine.
    let config = if is_here { config.proxy(None) } else { config };
    #[cfg(feature = "kafka-ssl")]
    let config = config.tls_config(
        ureq::tls::TlsConfig::builder()
            .provider(ureq::tls::TlsProvider::NativeTls)
            .root_certs(ureq::tls::RootCerts::PlatformVerifier)
            .build(),
    );
    config.build().new_agent()
}

/// What came of one question.
enum Answer {
    Found(Arc<str>),
    /// There is none that messages could have.
    None(String),
    /// It may answer yet.
    Silent(String),
    /// It will not answer.
    Refused(Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    schema: String,
    /// Left out for Avro.
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Complaint {
    error_code: u64,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "a pause between two questions; no row depends on it")]
    fn find(&self, id: u32) -> Result<Result<Arc<str>, String>> {
        let mut waits = WAITS.iter();
        loop {
            match block_in_place(|| self.ask(id)) {
                Answer::Found(schema) => return Ok(Ok(schema)),
                Answer::None(why) => return Ok(Err(why)),
                Answer::Refused(error) => return Err(error),
                Answer::Silent(why) => match waits.next() {
                    Some(wait) => block_in_place(|| std::thread::sleep(*wait)),
                    None => {
                        return Err(self
                            .failed(id, &why)
                            .with_hint("see that it runs and can be reached from here, then start the query again"));
                    }
                },
            }
        }
    }

    fn ask(&self, id: u32) -> Answer {
        let mut request = self.agent.get(format!("{}/schemas/ids/{id}", self.url)).header("Accept", ACCEPT);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization.as_str());
        }
        let answer = request.call().and_then(|mut response| {
            let text = response.body_mut().read_to_string()?;
            Ok((response.status().as_u16(), text))
        });
        match answer {
            Ok((status, text)) => self.understand(id, status, &text),
            Err(why) => Answer::Silent(why.to_string()),
        }
    }

    fn understand(&self, id: u32, status: u16, text: &str) -> Answer {
        match status {
            200 => match serde_json::from_str::<Registered>(text) {
                Ok(Registered { schema_type: Some(kind), .. }) if kind != "AVRO" => {
                    Answer::None(format!("the schema {id} is {kind}, not Avro"))
                }
                Ok(Registered { references, .. }) if !references.is_empty() => {
                    Answer::None(format!("the schema {id} refers to other schemas, which is not supported"))
                }
                Ok(Registered { schema, .. }) => Answer::Found(schema.into()),
                Err(_) => Answer::Refused(
                    self.failed(id, "the answer is not a registry's")
                        .with_hint("see that the URL is that of a schema registry"),
                ),
            },
            404 => match serde_json::from_str::<Complaint>(text) {
                Ok(Complaint { error_code }) if NOT_FOUND.contains(&error_code) => {
                    Answer::None(format!("the schema registry knows no schema {id}"))
                }
                _ => Answer::Refused(
                    self.failed(id, "there is nothing at this address")
                        .with_hint("see that the URL is that of a schema registry"),
                ),
            },
            401 | 403 => Answer::Refused(
                self.failed(id, &format!("it refused with status {status}"))
                    .with_hint("give a user and a password that may read schemas"),
            ),
            408 | 429 | 500..=599 => Answer::Silent(format!("it answered with status {status}")),
            _ => Answer::Refused(
                self.failed(id, &format!("it answered with status {status}"))
                    .with_hint("see that the URL is that of a schema registry"),
            ),
        }
    }

    fn failed(&self, id: u32, why: &str) -> Error {
        let message = format!("cannot get the schema {id} from the registry at {}: {why}", self.url);
        Error::new(ErrorKind::Unavailable, message)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A server that gives these answers, one after another. Gives its URL, and in the end what it was asked.
    fn server(answers: Vec<(u16, &'static str)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = std::thread::spawn(move || {
            let answer = |(status, body): (u16, &str)| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut part = [0; 1024];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    let read = stream.read(&mut part).unwrap();
                    assert!(read > 0, "the question ends early");
                    request.extend_from_slice(&part[..read]);
                }
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close", body.len());
                stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
                String::from_utf8(request).unwrap()
            };
            answers.into_iter().map(answer).collect()
        });
        (url, asked)
    }

    const SEVEN: &str = r#"{"schema":"{\"type\":\"record\"}","id":7}"#;

    #[test]
    fn a_schema_is_asked_for_once() {
        let (url, asked) = server(vec![(200, SEVEN)]);
        let registry = SchemaRegistry::http(&format!("{url}/")).unwrap();
        assert_eq!(registry.schema(7).unwrap(), r#"{"type":"record"}"#);
        assert_eq!(registry.clone().find(7).unwrap().unwrap().as_ref(), r#"{"type":"record"}"#);
        let asked = asked.join().unwrap();
        assert!(asked[0].starts_with("GET /schemas/ids/7 HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(!asked[0].to_ascii_lowercase().contains("authorization"));
    }

    #[test]
    fn a_registry_that_stumbles_is_asked_again() {
        let (url, asked) = server(vec![(503, "later"), (500, ""), (200, SEVEN)]);
        SchemaRegistry::http(&url).unwrap().schema(7).unwrap();
        assert_eq!(asked.join().unwrap().len(), 3);
    }

    #[test]
    fn a_registry_that_is_away_is_no_fault_of_a_message() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = SchemaRegistry::http(&format!("http://{closed}")).unwrap().find(7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains(&format!("schema 7 from the registry at http://{closed}")), "{error}");
        assert!(error.hint().unwrap().contains("start the query again"));
    }

    #[test]
    fn what_messages_cannot_have_is_told_from_what_is_no_registry() {
        let (url, asked) = server(vec![
            (404, r#"{"error_code":40403,"message":"Schema 8 not found"}"#),
            (200, r#"{"schema":"message X {}","schemaType":"PROTOBUF"}"#),
            (200, r#"{"schema":"{}","references":[{"name":"Address","subject":"a","version":1}]}"#),
            (404, "<html>no such page</html>"),
            (200, "<html>welcome</html>"),
            (302, ""),
        ]);
        let registry = SchemaRegistry::http(&url).unwrap();
        for why in ["no schema 8", "PROTOBUF, not Avro", "refers to other schemas"] {
            let found = registry.find(8).unwrap().unwrap_err();
            assert!(found.contains(why), "{found}");
        }
        for why in ["nothing at this address", "not a registry's", "status 302"] {
            let error = registry.find(8).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.message().contains(why), "{error}");
        }
        asked.join().unwrap();
    }

    #[test]
    fn secrets_are_sent_and_not_shown() {
        let (url, asked) = server(vec![(401, ""), (200, SEVEN)]);
        let with_user = url.replace("http://", "http://me:s%40cret@");
        for registry in
            [SchemaRegistry::http(&url).unwrap().basic_auth("me", "s@cret"), SchemaRegistry::http(&with_user).unwrap()]
        {
            assert_eq!(format!("{registry:?}"), format!("SchemaRegistry(\"{url}\")"));
            if let Err(error) = registry.find(7) {
                assert!(error.hint().unwrap().contains("password"));
                assert!(!error.to_string().contains("cret"), "{error}");
            }
        }
        for request in asked.join().unwrap() {
            assert!(request.contains("Basic bWU6c0BjcmV0\r\n"), "{request}");
        }
    }

    #[test]
    fn urls_are_checked_and_not_repeated() {
        for url in ["registry:s3cret", "ftp://me:s3cret@host", "http://host/?s3cret", "me:s3cret@host:81", ""] {
            let error = SchemaRegistry::http(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidQuery);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let https = SchemaRegistry::http("https://host");
        assert_eq!(https.is_ok(), cfg!(feature = "kafka-ssl"));
    }

    #[test]
    fn a_fixed_set() {
        let registry = SchemaRegistry::of([(1, "{}"), (5, "[]")]);
        assert_eq!(registry.schema(5).unwrap(), "[]");
        assert!(registry.find(2).unwrap().unwrap_err().contains("id 2"));
        assert_eq!(format!("{registry:?}"), "SchemaRegistry([1, 5])");
    }
}
