//! The rules of Spark's KafkaSourceProvider, and ours.

use arrow::datatypes::{DataType, Field};
use tidewater::error::ErrorKind;

use super::*;
use crate::kafka::offsets::testing::offsets;

/// With these options beside those that are needed.
fn with(given: &[(&str, &str)]) -> Result<Settings> {
    let needed = [("kafka.bootstrap.servers", "somehost:9092"), ("subscribe", "topic")];
    only(&[&needed[..], given].concat())
}

fn only(given: &[(&str, &str)]) -> Result<Settings> {
    Settings::from_options(given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn topics(given: (&str, &str)) -> Result<Topics> {
    Ok(only(&[("kafka.bootstrap.servers", "somehost"), given])?.topics)
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn defaults_are_spark_s() {
    let settings = with(&[]).unwrap();
    assert_eq!(settings.client.bootstrap(), "somehost:9092");
    assert_eq!(settings.topics, Topics::Subscribe(names(["topic"])));
    assert_eq!(settings.starting, StartingOffsets::Latest);
    assert_eq!(settings.no_offset_for_time, NoOffsetForTime::Error);
    assert_eq!((settings.max_offsets, settings.min_offsets), (None, None));
    assert_eq!(settings.max_trigger_delay_ms().unwrap(), 900_000);
    assert_eq!((settings.min_partitions, settings.max_records_per_partition), (None, None));
    assert!(settings.fail_on_data_loss && !settings.topics_moved && !settings.include_headers);
    assert_eq!(settings.patience_ms, 120_000);
    assert_eq!((settings.commit_group, settings.bad_records), (None, BadRecordPolicy::Fail));
    assert!(settings.key_format.is_none() && settings.value_format.is_none());
}

#[test]
fn names_are_of_any_case() {
    for change in [str::to_ascii_lowercase, str::to_ascii_uppercase] {
        let given = [
            ("kafkaConsumer.pollTimeoutMs", "1111"),
            ("maxOffsetsPerTrigger", "1112"),
            ("minOffsetsPerTrigger", "1111"),
            ("maxTriggerDelay", "1111"),
            ("minPartitions", "7"),
            ("maxRecordsPerPartition", "8"),
            ("failOnDataLoss", "False"),
            ("topicsMoved", "true"),
            ("includeHeaders", "TRUE"),
            ("startingOffsets", "earLiEst"),
            ("startingOffsetsByTimestampStrategy", "Latest"),
            ("commitOffsetsToGroup", " lag "),
            ("badRecords", "DEADLETTER"),
            ("kafka.metadata.max.age.ms", "1"),
        ];
        let given: Vec<(String, &str)> = given.iter().map(|&(name, value)| (change(name), value)).collect();
        let settings = with(&given.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>()).unwrap();
        assert_eq!(settings.patience_ms, 1111);
        assert_eq!((settings.max_offsets, settings.min_offsets), (Some(1112), Some(1111)));
        assert_eq!(settings.max_trigger_delay_ms().unwrap(), 1111);
        assert_eq!((settings.min_partitions, settings.max_records_per_partition), (Some(7), Some(8)));
        assert!(!settings.fail_on_data_loss && settings.topics_moved && settings.include_headers);
        assert_eq!(settings.starting, StartingOffsets::Earliest);
        assert_eq!(settings.no_offset_for_time, NoOffsetForTime::Latest);
        assert_eq!(settings.commit_group.as_deref(), Some("lag"));
        assert_eq!(settings.bad_records, BadRecordPolicy::DeadLetter);
        assert_eq!(settings.client.get("metadata.max.age.ms"), Some("1"), "librdkafka's names are in lower case");
    }
}

#[test]
fn topics_are_told_in_one_of_three_ways() {
    assert_eq!(topics(("subscribe", " a , b,, a ")).unwrap(), Topics::Subscribe(names(["a", "b"])));
    assert_eq!(topics(("subscribePattern", " orders-.* ")).unwrap(), Topics::Pattern("orders-.*".to_owned()));
    let assigned = [("topicA".to_owned(), BTreeSet::from([0, 1])), ("topicB".to_owned(), BTreeSet::from([4, 6]))];
    let given = r#"{"topicA":[0,1],"topicB":[6,4,6],"topicC":[]}"#;
    assert_eq!(topics(("assign", given)).unwrap(), Topics::Assign(assigned.into()));
}

#[test]
fn a_pattern_means_whole_names() {
    let regex = whole_name("a|b.*").unwrap();
    let matches = ["a", "b", "bc", "ab", "xb"].map(|name| regex.is_match(name));
    assert_eq!(matches, [true, true, true, false, false]);
}

#[test]
fn a_query_begins_where_it_is_told() {
    let starting = |given: &[(&str, &str)]| with(given).map(|settings| settings.starting);
    let at = offsets(&[("topic-A", 0, 23), ("topic-A", 1, -1), ("b", 0, -2)]);
    let json = r#" {"topic-A":{"0":23,"1":-1},"b":{"0":-2}} "#;
    assert_eq!(starting(&[("startingOffsets", json)]).unwrap(), StartingOffsets::At(at));
    assert_eq!(starting(&[("startingOffsets", "laTest")]).unwrap(), StartingOffsets::Latest);
    let (earliest, global) = (("startingOffsets", "earliest"), ("startingTimestamp", "1767225600000"));
    let each = ("startingOffsetsByTimestamp", r#"{"t":{"0":1000}}"#);
    let at_times = StartingOffsets::AtTimes(offsets(&[("t", 0, 1000)]));
    // Whatever the order they are given in.
    assert_eq!(starting(&[earliest, each, global]).unwrap(), StartingOffsets::AtTime(1_767_225_600_000));
    assert_eq!(starting(&[global, each, earliest]).unwrap(), StartingOffsets::AtTime(1_767_225_600_000));
    assert_eq!(starting(&[each, earliest]).unwrap(), at_times);
    assert_eq!(starting(&[earliest]).unwrap(), StartingOffsets::Earliest);
}

#[test]
fn lengths_of_time_are_spark_s_or_sql_s() {
    for (given, ms) in [("5s", 5_000), ("15m", 900_000), ("1111", 1111), ("2 minutes", 120_000), ("0", 0)] {
        assert_eq!(with(&[("maxTriggerDelay", given)]).unwrap().max_trigger_delay_ms().unwrap(), ms, "{given}");
    }
}

#[test]
fn wrong_options_are_answered() {
    for (name, value, answer) in [
        ("startingOffsets", "first", "write `earliest`, `latest`"),
        ("startingOffsets", r#"{"t":{"0":-3}}"#, "-2 stands for the earliest"),
        ("startingOffsets", r#"{"t":"earliest"}"#, "write `earliest`, `latest`"),
        ("startingOffsetsByTimestamp", r#"{"t":1000}"#, "milliseconds since 1970"),
        ("startingOffsetsByTimestamp", r#"{"t":{"0":-2}}"#, "milliseconds since 1970"),
        ("startingTimestamp", "yesterday", "milliseconds since 1970"),
        ("startingTimestamp", "-1", "milliseconds since 1970"),
        ("startingOffsetsByTimestampStrategy", "earliest", "`error` or `latest`"),
        ("maxOffsetsPerTrigger", "0", "at least 1"),
        ("minOffsetsPerTrigger", "-5", "at least 1"),
        ("minPartitions", "0", "at least 1"),
        ("maxRecordsPerPartition", "many", "at least 1"),
        ("kafkaConsumer.pollTimeoutMs", "2 minutes", "at least 1"),
        ("maxTriggerDelay", "-5s", "`15m`"),
        ("failOnDataLoss", "maybe", "`true` or `false`"),
        ("badRecords", "skip", "`deadLetter`"),
        ("commitOffsetsToGroup", " ", "name of a consumer group"),
        ("maxOffsetPerTrigger", "5", "did you mean `maxOffsetsPerTrigger`"),
        ("bootstrap.servers", "b", "write `kafka.bootstrap.servers`"),
        ("endingOffsets", "latest", "`AvailableNow`"),
        ("endingOffsetsByTimestamp", r#"{"t":{"0":1000}}"#, "`AvailableNow`"),
        ("endingTimestamp", "1000", "`AvailableNow`"),
        ("fetchOffset.numRetries", "3", "`kafkaConsumer.pollTimeoutMs`"),
    ] {
        let error = with(&[(name, value)]).unwrap_err();
        assert!(error.message().contains(name), "{error}");
        assert!(error.to_string().contains(answer), "{error}");
        assert!(matches!(error.kind(), ErrorKind::InvalidQuery | ErrorKind::Unsupported), "{error}");
        let refused = error.kind() == ErrorKind::Unsupported || error.message().contains("did you mean");
        // Where one partition is wrong, it is named.
        let named = error.message().contains(value) || error.message().contains("partition 0 of topic `t`");
        assert!(refused || named, "{error}");
    }
    let both = with(&[("minOffsetsPerTrigger", "20"), ("maxOffsetsPerTrigger", "15")]).unwrap_err();
    assert!(both.message().contains("is 20") && both.message().contains("only 15"), "{both}");
    assert!(with(&[("minOffsetsPerTrigger", "15"), ("maxOffsetsPerTrigger", "15")]).is_ok());
}

#[test]
fn what_to_read_and_where_must_be_told() {
    for value in ["", " ", "a:[0]", "[0]", "{}", r#"{"a":[]}"#, r#"{"a":0}"#, r#"{"a":[-1]}"#] {
        assert!(topics(("assign", value)).is_err(), "{value}");
    }
    for given in [("subscribe", ""), ("subscribe", " , "), ("subscribePattern", " "), ("subscribePattern", "a(")] {
        let error = topics(given).unwrap_err();
        assert!(error.message().contains(given.0), "{error}");
    }
    let several = with(&[("subscribePattern", "t.*")]).unwrap_err();
    assert!(several.message().contains("more than one way"), "{several}");
    assert!(with(&[("assign", r#"{"a":[0]}"#)]).unwrap_err().hint().unwrap().contains("set one of"));
    let none = only(&[("kafka.bootstrap.servers", "b")]).unwrap_err();
    assert!(none.hint().unwrap().contains("`subscribe`, `subscribePattern` and `assign`"), "{none}");
    for given in [&[("subscribe", "t")][..], &[("subscribe", "t"), ("kafka.bootstrap.servers", " , ")]] {
        let error = only(given).unwrap_err();
        assert!(error.hint().unwrap().contains("`kafka.bootstrap.servers`"), "{error}");
    }
    let error = with(&[("kafka.bootstrap.servers", "alice:hunter2@b:1")]).unwrap_err();
    assert!(error.message().contains("`kafka.bootstrap.servers`") && !error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn properties_that_the_source_sets_itself_are_refused() {
    for (name, value) in [
        ("auto.offset.reset", "someValue"),
        ("auto.offset.reset", "none"),
        ("auto.offset.reset", "earliest"),
        ("auto.offset.reset", "latest"),
        ("enable.auto.commit", "someValue"),
        ("enable.auto.offset.store", "true"),
        ("enable.partition.eof", "false"),
        ("interceptor.classes", "someValue"),
        ("key.deserializer", "someValue"),
        ("value.deserializer", "someValue"),
    ] {
        let spelled = format!("Kafka.{}", name.to_ascii_uppercase());
        let error = with(&[(spelled.as_str(), value)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains(&format!("`{name}` is `{value}`")), "{error}");
        assert!(error.hint().is_some(), "{error}");
        // In Rust, too.
        let mut settings = with(&[]).unwrap();
        settings.client.set(name, value);
        assert!(settings.check().is_err());
    }
    let error = with(&[("kafka.sasl.jaas.config", "… required password=\"hunter2\";")]).unwrap_err();
    assert!(error.hint().unwrap().contains("`sasl.username`"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn properties_go_to_librdkafka() {
    let given = [("kafka.sasl.password", "hunter2"), ("KAFKA.Security.Protocol", "SASL_SSL"), ("kafka.group.id", "g")];
    let settings = with(&given).unwrap();
    assert_eq!(settings.client.get("sasl.password"), Some("hunter2"));
    assert_eq!(settings.client.get("security.protocol"), Some("SASL_SSL"));
    assert_eq!(settings.client.get("group.id"), Some("g"));
    assert!(!format!("{settings:?}").contains("hunter2"));
    let group = |given: &[(&str, &str)]| with(given).unwrap().client.get("group.id").map(str::to_owned);
    assert_eq!(group(&[("groupIdPrefix", "team-a")]).as_deref(), Some("team-a-tidewater"));
    assert_eq!(group(&[("groupIdPrefix", "team-a"), ("kafka.group.id", "g")]).as_deref(), Some("g"));
    assert_eq!(group(&[]), None);
}

#[test]
fn what_was_built_in_rust_is_checked_too() {
    let of = |topics: Topics| Settings::new(ClientSettings::new("b:9092"), topics);
    let one = || of(Topics::Subscribe(names(["t"])));
    assert!(one().check().is_ok());
    assert!(of(Topics::Subscribe(BTreeSet::new())).check().is_err());
    assert!(of(Topics::Subscribe(names([""]))).check().is_err());
    assert!(of(Topics::Pattern("(".to_owned())).check().is_err());
    assert!(of(Topics::Assign(BTreeMap::new())).check().is_err());
    let negative = [("a".to_owned(), BTreeSet::from([0])), ("t".to_owned(), BTreeSet::from([0, -4]))];
    let error = of(Topics::Assign(negative.into())).check().unwrap_err();
    assert!(error.message().contains("topic `t` cannot have a partition -4"), "{error}");
    assert!(Settings { client: ClientSettings::new(" "), ..one() }.check().is_err());
    for starting in [
        StartingOffsets::At(offsets(&[("t", 0, 5), ("t", 1, -3)])),
        StartingOffsets::AtTime(-1),
        StartingOffsets::AtTimes(offsets(&[("t", 0, -1)])),
    ] {
        assert!(Settings { starting, ..one() }.check().is_err());
    }
    assert!(Settings { starting: StartingOffsets::At(offsets(&[("t", 0, -2)])), ..one() }.check().is_ok());
    assert!(Settings { min_offsets: Some(2), max_offsets: Some(1), ..one() }.check().is_err());
}

#[test]
fn people_see_what_is_read() {
    let of = |given| only(&[("kafka.bootstrap.servers", "b:1"), given]).unwrap().description();
    assert_eq!(of(("subscribe", "orders,returns")), "kafka [orders, returns] at b:1");
    assert_eq!(of(("subscribePattern", "orders-.*")), "kafka [like orders-.*] at b:1");
    assert_eq!(of(("assign", r#"{"a":[3,0],"b":[1]}"#)), "kafka [a-0, a-3, b-1] at b:1");
}

#[test]
fn dead_letters_need_a_format() {
    let mut settings = with(&[("badRecords", "deadLetter")]).unwrap();
    assert!(!settings.sends_dead_letters(), "bytes are never bad");
    settings.value_format = Some(Format::json(vec![Field::new("a", DataType::Int32, true)]));
    assert!(settings.sends_dead_letters());
    settings.bad_records = BadRecordPolicy::Null;
    assert!(!settings.sends_dead_letters());
}
