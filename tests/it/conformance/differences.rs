//! Where we answer otherwise than Spark, on purpose: every such case, why, and what we answer instead. There are few.
//!
//! What is said here replaces the keys of the case's file, so our own answer is checked as strictly as Spark's is
//! elsewhere.

/// A case whose recorded answer is not ours.
pub(super) struct Difference {
    /// `<group>/<name>`.
    pub(super) case: &'static str,
    pub(super) reason: &'static str,
    /// A JSON object: the keys of the case, or JSON pointers into it, that have other values with us.
    pub(super) instead: &'static str,
}

/// What is said of a case, if it is one of these.
pub(super) fn difference(case: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| difference.case == case)
}

pub(super) const DIFFERENCES: [Difference; 9] = [
    Difference {
        case: "errors/count_distinct",
        reason: "Spark refuses DISTINCT aggregates on a stream; we keep the values seen and answer as a batch does",
        instead: r#"{
            "expect_error": null,
            "columns": ["k", "d"],
            "column_types": ["string", "long"],
            "steps": [
                {"add": {"events": [
                    ["2024-01-01T00:00:01.000000Z", "a", 1], ["2024-01-01T00:00:02.000000Z", "a", 1],
                    ["2024-01-01T00:00:03.000000Z", "a", 2], ["2024-01-01T00:00:04.000000Z", "b", null]
                ]}},
                {"process": {"expect_rows": [["a", 2], ["b", 0]], "watermark_next": null}},
                {"add": {"events": [
                    ["2024-01-01T00:00:05.000000Z", "a", 2], ["2024-01-01T00:00:06.000000Z", "a", 3],
                    ["2024-01-01T00:00:07.000000Z", "c", 9]
                ]}},
                {"process": {"expect_rows": [["a", 3], ["c", 1]], "watermark_next": null}}
            ]
        }"#,
    },
    Difference {
        case: "errors/left_semi_join_without_watermark",
        reason: "Spark refuses what an outer join would need; a semi join gives a row at its first match, which no later row \
                 takes back, so we answer it as an inner join",
        instead: r#"{
            "expect_error": null,
            "columns": ["lts", "lk", "lv"],
            "column_types": ["timestamp", "string", "long"],
            "steps": [
                {"add": {
                    "left": [["2024-01-01T00:00:10.000000Z", "a", 1], ["2024-01-01T00:00:10.000000Z", "b", 2]]
                }},
                {"process": {"expect_rows": [], "watermark_next": null}},
                {"add": {
                    "right": [["2024-01-01T00:00:12.000000Z", "a", 3], ["2024-01-01T00:00:13.000000Z", "a", 4]]
                }},
                {"process": {"expect_rows": [["2024-01-01T00:00:10.000000Z", "a", 1]], "watermark_next": null}},
                {"add": {"left": [["2024-01-01T00:00:01.000000Z", "a", 5]]}},
                {"process": {"expect_rows": [["2024-01-01T00:00:01.000000Z", "a", 5]], "watermark_next": null}}
            ]
        }"#,
    },
    Difference {
        case: "stream_joins/full_outer_null_keys",
        reason: "Spark matches NULL keys with each other in a full outer join of streams, in no other join and in no \
                 batch (a quirk); with us a row without key never matches and is padded when its time has passed",
        instead: r#"{
            "steps": [
                {"add": {
                    "left": [["2024-01-01T00:00:10.000000Z", null, 1]],
                    "right": [["2024-01-01T00:00:10.000000Z", null, 3]]
                }},
                {"process": {"expect_rows": [], "watermark_next": "2024-01-01T00:00:10.000000Z"}},
                {"add": {
                    "left": [["2024-01-01T00:00:40.000000Z", "tick-l40", 0]],
                    "right": [["2024-01-01T00:00:40.000000Z", "tick-r40", 0]]
                }},
                {"process": {
                    "expect_rows": [
                        ["2024-01-01T00:00:10.000000Z", null, 1, null, null, null],
                        [null, null, null, "2024-01-01T00:00:10.000000Z", null, 3]
                    ],
                    "watermark_next": "2024-01-01T00:00:40.000000Z"
                }}
            ]
        }"#,
    },
    Difference {
        case: "random/r017_full_outer_stream_stream_join_append",
        reason: "Spark never evicts a row without event time, though it can match nothing; with us it comes out at once",
        instead: r#"{
            "/steps/11/process/expect_rows": [
                ["2024-01-01T00:00:46.000000Z", "c", 16, null, null, null],
                ["2024-01-01T00:00:54.000000Z", "b", 16, null, null, null],
                ["2024-01-01T00:00:54.000000Z", "b", null, null, null, null],
                ["2024-01-01T00:00:56.000000Z", "c", 19, "2024-01-01T00:00:54.000000Z", "c", 10],
                ["2024-01-01T00:00:56.000000Z", "c", 19, "2024-01-01T00:00:55.500000Z", "c", 3],
                ["2024-01-01T00:00:57.000000Z", "b", 20, null, null, null],
                ["2024-01-01T00:00:57.000000Z", "c", null, "2024-01-01T00:00:55.500000Z", "c", 3],
                [null, null, null, "2024-01-01T00:00:41.000000Z", "b", 8],
                [null, null, null, "2024-01-01T00:00:43.000000Z", "a", 0],
                [null, null, null, "2024-01-01T00:00:44.500000Z", "a", 8],
                [null, null, null, null, "c", 11]
            ]
        }"#,
    },
    Difference {
        case: "random/r043_left_outer_stream_stream_join_append",
        reason: "as random/r017_full_outer_stream_stream_join_append: a row without event time comes out at once",
        instead: r#"{
            "/steps/15/process/expect_rows": [
                ["2024-01-01T00:00:07.000000Z", null, 14, null, null, null],
                ["2024-01-01T00:00:12.086413Z", "c", 10, null, null, null],
                ["2024-01-01T00:00:13.000000Z", "b", 12, null, null, null],
                ["2024-01-01T00:00:17.000000Z", "c", null, null, null, null],
                ["2024-01-01T00:00:17.500000Z", "c", 16, null, null, null],
                ["2024-01-01T00:00:26.500000Z", "b", -2, "2024-01-01T00:00:30.500000Z", "b", 18],
                [null, "b", 8, null, null, null]
            ]
        }"#,
    },
    Difference {
        case: "random/r079_left_outer_stream_stream_join_append",
        reason: "as random/r017_full_outer_stream_stream_join_append: a row without event time comes out at once",
        instead: r#"{
            "/steps/13/process/expect_rows": [
                [null, "a", 3, null, null, null]
            ]
        }"#,
    },
    Difference {
        case: "random/r085_right_outer_stream_stream_join_append",
        reason: "as random/r017_full_outer_stream_stream_join_append: a row without event time comes out at once",
        instead: r#"{
            "/steps/5/process/expect_rows": [
                ["2024-01-01T00:00:07.000000Z", "b", 10, "2024-01-01T00:00:09.000000Z", "b", 13],
                ["2024-01-01T00:00:07.000000Z", "b", 10, "2024-01-01T00:00:10.000000Z", "b", 11],
                ["2024-01-01T00:00:07.000000Z", "b", 10, "2024-01-01T00:00:11.000000Z", "b", 19],
                ["2024-01-01T00:00:07.000000Z", "b", 10, "2024-01-01T00:00:11.468076Z", "b", 11],
                [null, null, null, "2024-01-01T00:00:08.000000Z", "a", 12],
                [null, null, null, "2024-01-01T00:00:09.000000Z", "b", -5],
                [null, null, null, "2024-01-01T00:00:09.000000Z", null, -1],
                [null, null, null, "2024-01-01T00:00:09.909976Z", "b", 3],
                [null, null, null, "2024-01-01T00:00:10.000000Z", "a", -5],
                [null, null, null, "2024-01-01T00:00:10.000000Z", "b", 3],
                [null, null, null, "2024-01-01T00:00:10.349681Z", "a", 7],
                [null, null, null, null, "a", -2]
            ]
        }"#,
    },
    Difference {
        case: "random/r102_left_outer_stream_stream_join_append",
        reason: "as restart/union_silent_source_after_restart; here it is only the watermark that is further",
        instead: r#"{
            "/steps/12/process/watermark_next": "2024-01-01T00:00:22.000000Z",
            "/steps/14/process/watermark_next": "2024-01-01T00:00:22.000000Z",
            "/steps/17/process/watermark_next": "2024-01-01T00:00:22.000000Z"
        }"#,
    },
    Difference {
        case: "restart/union_silent_source_after_restart",
        reason: "Spark forgets at a restart how far each source had come, so one that is silent afterwards holds the \
                 watermark back; our checkpoint keeps it, and a restart changes no answer",
        instead: r#"{
            "steps": [
                {"add": {
                    "a": [["2024-01-01T00:00:15.000000Z", "a", 1]], "b": [["2024-01-01T00:01:40.000000Z", "b", 1]]
                }},
                {"process": {"expect_rows": [], "watermark_next": "2024-01-01T00:00:15.000000Z"}},
                {"restart": true},
                {"add": {"a": [["2024-01-01T00:00:50.000000Z", "a", 1]]}},
                {"process": {
                    "expect_rows": [["2024-01-01T00:00:10.000000Z", "2024-01-01T00:00:20.000000Z", 1]],
                    "watermark_next": "2024-01-01T00:00:50.000000Z"
                }},
                {"add": {"a": [["2024-01-01T00:01:00.000000Z", "a", 1]]}},
                {"process": {
                    "expect_rows": [["2024-01-01T00:00:50.000000Z", "2024-01-01T00:01:00.000000Z", 1]],
                    "watermark_next": "2024-01-01T00:01:00.000000Z"
                }},
                {"add": {"b": [["2024-01-01T00:01:41.000000Z", "b", 1]]}},
                {"process": {"expect_rows": [], "watermark_next": "2024-01-01T00:01:00.000000Z"}}
            ]
        }"#,
    },
];
