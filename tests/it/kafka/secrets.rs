//! Passwords: a wrong one is told within seconds, and neither a wrong nor a right one is shown anywhere. And TLS.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tidewater::prelude::*;
use tidewater::sink::Sink;
use tidewater::source::Source;
use tidewater_connectors::kafka::{KafkaSink, KafkaSource, StartingOffsets};
use tidewater_workspace::kafka::{SASL_PASSWORD, SASL_USERNAME};

use super::steps::{all_of, assert_says, into, options, read_all, rows_in_memory, run, sorted, texts};
use super::{broker, new_topic};

/// Set for the process that [`passwords_are_shown_nowhere`] starts; it has a log of its own, in which everything is.
const ERRAND: &str = "TIDEWATER_SECRETS_ERRAND";

const WRONG: &str = "open-sesame-81";

/// What the broker says goes into the log, too: librdkafka then tells all it does.
fn access(bootstrap: &str, password: &str, topic: (&str, &str)) -> Vec<(String, String)> {
    options([
        ("kafka.bootstrap.servers", bootstrap),
        ("kafka.security.protocol", "SASL_PLAINTEXT"),
        ("kafka.sasl.mechanism", "PLAIN"),
        ("kafka.sasl.username", SASL_USERNAME),
        ("kafka.sasl.password", password),
        ("kafka.debug", "all"),
        topic,
    ])
}

/// Everything that can be seen of a query.
fn show(query: &StreamingQuery) {
    println!("{:?} {:?}\n{}", query.status(), query.error(), query.explain());
    query.recent_progress().iter().for_each(|progress| println!("{}", progress.json()));
}

/// Everything that can be seen of an error.
fn show_error(error: &Error) {
    println!("{error}\n{error:?}\n{error:#?}");
    let mut below: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = below {
        println!("because of {cause}, {cause:?}");
        below = cause.source();
    }
}

/// With the right password: rows go in and come out again.
async fn use_the_password(bootstrap: &str, topic: &str, dir: &Path) {
    let sink = KafkaSink::from_options(access(bootstrap, SASL_PASSWORD, ("topic", topic))).unwrap();
    let mut given = access(bootstrap, SASL_PASSWORD, ("subscribe", topic));
    given.extend(options([("startingOffsets", "earliest")]));
    let source = KafkaSource::from_options(given).unwrap();
    println!("{sink:?} {sink:#?} {} {source:?} {source:#?} {}", sink.description(), source.description());

    let rows = rows_in_memory(&["key", "value"], &json!([["k", "a"], ["l", "b"], ["m", "c"]]));
    show(&run(rows, sink, &dir.join("in")).await.unwrap());
    let taken = MemorySink::new();
    show(&run(source, taken.clone(), &dir.join("out")).await.unwrap());
    assert_eq!(sorted(texts(&taken.batches(), "value")), ["a", "b", "c"]);
}

/// With the wrong one: an error that says so, soon.
async fn be_refused(bootstrap: &str, topic: &str, dir: &Path) {
    let asked = Instant::now();
    let source = KafkaSource::from_options(access(bootstrap, WRONG, ("subscribe", topic))).unwrap();
    println!("{source:?}");
    let refused_source = run(source, DiscardSink::new(), &dir.join("refused-source")).await.unwrap_err();
    println!("the source is refused after {:?}", asked.elapsed());

    let since = asked.elapsed();
    let sink = KafkaSink::from_options(access(bootstrap, WRONG, ("topic", topic))).unwrap();
    println!("{sink:?}");
    let rows = rows_in_memory(&["value"], &json!([["a"], ["b"], ["c"]]));
    let refused_sink = run(rows, sink, &dir.join("refused-sink")).await.unwrap_err();
    println!("the sink is refused after {:?}", asked.elapsed() - since);

    for refused in [refused_source, refused_sink] {
        show_error(&refused);
        assert_says(&refused, ErrorKind::Unavailable, &["refused the user or the password", "`sasl.password`"]);
    }
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

/// Where in `text` the secret is. The right one is also the beginning of our name.
fn find(text: &[u8], secret: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text).replace("tidewater", "").replace("Tidewater", "");
    let at = text.find(secret)?;
    Some(text.chars().skip(text[..at].chars().count().saturating_sub(200)).take(400).collect())
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { files_below(&path, files) } else { files.push(path) }
    }
}

/// The work is done in a process of its own, which writes down everything at the lowest level. This one reads it, and
/// the files of the checkpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_shown_nowhere() {
    if let Ok(errand) = std::env::var(ERRAND) {
        let [bootstrap, topic, dir]: [&str; 3] = errand.split('|').collect::<Vec<_>>().try_into().unwrap();
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
        use_the_password(bootstrap, topic, Path::new(dir)).await;
        be_refused(bootstrap, topic, Path::new(dir)).await;
        return;
    }
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "secret");
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kafka::secrets::passwords_are_shown_nowhere", "--nocapture"])
        .env(ERRAND, format!("{}|{topic}|{}", broker.sasl_bootstrap(), dir.path().display()))
        .output()
        .unwrap();
    let (said, logged) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if !done.status.success() {
        let last: Vec<&str> = logged.lines().rev().take(50).collect();
        std::io::stderr().write_all(last.into_iter().rev().collect::<Vec<_>>().join("\n").as_bytes()).unwrap();
        panic!("it failed:\n{said}");
    }
    said.lines().filter(|line| line.contains("refused")).for_each(|line| println!("{line}"));

    let mut files = vec![];
    files_below(dir.path(), &mut files);
    let named = |part: &str| files.iter().filter(|file| file.display().to_string().contains(part)).count();
    assert!(named("/offsets/0") >= 2 && named("/sources/0/0") >= 1, "{files:?}");
    println!("{} lines of log, {} files", logged.lines().count(), files.len());
    assert!(logged.contains("TRACE") && logged.contains("librdkafka"), "the log is not complete:\n{logged}");
    for secret in [WRONG, SASL_PASSWORD] {
        for (what, text) in [("what was printed", &done.stdout), ("the log", &done.stderr)] {
            assert_eq!(find(text, secret), None, "`{secret}` is in {what}");
        }
        for file in &files {
            assert_eq!(find(&std::fs::read(file).unwrap(), secret), None, "`{secret}` is in {}", file.display());
        }
    }
}

/// What is no secret is shown, or the test above would prove nothing.
#[test]
fn a_secret_is_found_where_it_is() {
    assert!(find(b"tidewater: the password of tidewater is tide", SASL_PASSWORD).is_some());
    assert_eq!(find(b"tidewater and Tidewater", SASL_PASSWORD), None);
    let given = access("localhost:9092", WRONG, ("subscribe", "orders"));
    assert!(find(format!("{given:?}").as_bytes(), WRONG).is_some());
    let shown = format!("{:?}", KafkaSource::from_options(given).unwrap());
    assert!(shown.contains("sasl.password") && shown.contains("PLAIN"), "{shown}");
}

/// Rows over TLS, both ways; without the certificate, the error says what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_over_tls() {
    let Some(broker) = broker() else { return };
    let topic = new_topic(broker, "tls");
    let dir = tempfile::tempdir().unwrap();
    let rows = || rows_in_memory(&["value"], &json!([["a"], ["b"], ["c"]]));
    let sink = || KafkaSink::new(broker.ssl_bootstrap()).topic(&topic).property("security.protocol", "ssl");
    let source = || {
        KafkaSource::subscribe(broker.ssl_bootstrap(), [&topic])
            .starting_offsets(StartingOffsets::Earliest)
            .property("security.protocol", "ssl")
    };
    let trusted = broker.ca_file();
    run(rows(), sink().property("ssl.ca.location", &trusted), &dir.path().join("in")).await.unwrap();
    assert_eq!(read_all(source().property("ssl.ca.location", &trusted)).await, ["a", "b", "c"]);
    assert_eq!(read_all(all_of(broker, &topic)).await, ["a", "b", "c"]);

    let asked = Instant::now();
    let distrusted = run(source(), DiscardSink::new(), &dir.path().join("source")).await.unwrap_err();
    assert_says(&distrusted, ErrorKind::Unavailable, &["no secure connection", "certificate", "`ssl.ca.location`"]);
    let distrusted = run(rows(), sink(), &dir.path().join("sink")).await.unwrap_err();
    assert_says(&distrusted, ErrorKind::Unavailable, &["no secure connection", "certificate", "`ssl.ca.location`"]);
    println!("both after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());

    // A listener that speaks no TLS.
    let plain = into(broker, &topic).property("security.protocol", "ssl").property("ssl.ca.location", &trusted);
    let failed =
        run(rows(), plain.property("message.timeout.ms", "6000"), &dir.path().join("plain")).await.unwrap_err();
    println!("TLS where none is spoken: {failed}");
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
}
