//! Properties of the Java client that librdkafka does not have, and what to set instead.

/// Properties that a user of the Java client brings, and what to do instead.
pub(super) const JAVA: &[(&[&str], &str)] = &[
    (&["sasl.jaas.config"], "set `sasl.mechanism`, `sasl.username` and `sasl.password`"),
    (
        &["sasl.client.callback.handler.class", "sasl.login.callback.handler.class", "sasl.login.class"],
        "set `sasl.oauthbearer.method` to `oidc`, and the other properties `sasl.oauthbearer.*`",
    ),
    (
        &["ssl.truststore.location", "ssl.truststore.password", "ssl.truststore.type", "ssl.truststore.certificates"],
        "set `ssl.ca.location` to a PEM file of the certificates to trust",
    ),
    (&["ssl.keystore.type", "ssl.keystore.key", "ssl.keystore.certificate.chain"], KEY),
    (&["buffer.memory"], "set `queue.buffering.max.kbytes`"),
    (&["default.api.timeout.ms"], "set the option `kafkaConsumer.pollTimeoutMs` of the source"),
    (&["fetch.max.wait.ms"], "set `fetch.wait.max.ms`"),
    (&["max.block.ms"], "set `message.timeout.ms`"),
    (&["max.poll.records"], "leave it out: what limits a batch is the option `maxOffsetsPerTrigger` of the source"),
    (&["max.request.size"], "set `message.max.bytes`"),
    (&["partitioner.class"], "set `partitioner`, to `murmur2_random` for what the Java client does"),
    (&["receive.buffer.bytes"], "set `socket.receive.buffer.bytes`"),
    (&["send.buffer.bytes"], "set `socket.send.buffer.bytes`"),
];

const KEY: &str = "set `ssl.key.location` and `ssl.certificate.location` to PEM files, and `ssl.key.password`; or \
                   `ssl.keystore.location` to a PKCS#12 file, and `ssl.keystore.password`";

/// What to do instead of setting this property, if only the Java client has it.
pub(crate) fn java_property_advice(name: &str, value: &str) -> Option<&'static str> {
    if name == "ssl.keystore.location" && value.to_ascii_lowercase().ends_with(".jks") {
        return Some(KEY);
    }
    JAVA.iter().find(|(names, _)| names.contains(&name)).map(|(_, instead)| *instead)
}
