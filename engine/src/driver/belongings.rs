//! Whether a checkpoint belongs to this query: its sources and sinks are those of the runs before.

use super::lifecycle::Start;
use crate::checkpoint::Belongings;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Identity;
use crate::output_mode::OutputMode;
use crate::plan::QueryPlan;
use crate::sink::{Sink, SinkRole};

/// What the query reads and writes.
pub(super) fn of(plan: &QueryPlan, mode: OutputMode, output: &dyn Sink, dead_letters: Option<&dyn Sink>) -> Belongings {
    Belongings {
        sources: plan.sources.iter().map(|source| source.identity()).collect(),
        output: output.identity(),
        dead_letters: dead_letters.and_then(|sink| sink.identity()),
        aggregated_in: plan.aggregates().then(|| mode.to_string()),
    }
}

/// An aggregation whose results went out in another mode. Each mode gives out, and forgets, at another time.
pub(super) fn check_mode(old: &Belongings, now: &Belongings, forgets: bool) -> Result<()> {
    let (Some(was), Some(is)) = (&old.aggregated_in, &now.aggregated_in) else { return Ok(()) };
    let names = [OutputMode::Append, OutputMode::Update, OutputMode::Complete].map(|mode| mode.to_string());
    let [append, update, complete] = &names;
    let why = if was == is {
        return Ok(());
    } else if was == append && is == update {
        "results that have waited for their end would come out only if they change"
    } else if is == complete && (was == append || (was == update && forgets)) {
        "results that are final are forgotten, and would be missing in the answer"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::IncompatibleCheckpoint,
        format!("the query has aggregated in {was} mode and is to go on in {is} mode: {why}"),
    )
    .with_hint(format!("go on in {was} mode, or start with a new checkpoint")))
}

/// A sink that one of the sources reads would make the query read its own output, endlessly.
pub(super) fn check_no_circle(start: &Start, plan: &QueryPlan) -> Result<()> {
    let output = Some((SinkRole::Output, start.sink.identity()));
    // A checkpoint is written, too; one in memory has no place.
    let checkpoint = start.checkpoint.full_name("");
    if !checkpoint.starts_with("memory:") {
        let checkpoint = Identity::new("checkpoint files").at(checkpoint);
        for source in &plan.sources {
            if source.reads_from(&checkpoint)? {
                return Err(Error::invalid(format!(
                    "the query would read its own {checkpoint} as input: its source {} takes files there",
                    source.description()
                ))
                .with_hint("keep the checkpoint in a folder that none of the query's sources reads"));
            }
        }
    }
    let dead_letters = start.dead_letters.as_ref().map(|sink| (SinkRole::DeadLetters, sink.identity()));
    for (name, sink) in output.into_iter().chain(dead_letters) {
        let Some(sink) = sink else { continue };
        for source in &plan.sources {
            if source.reads_from(&sink)? {
                return Err(Error::invalid(format!(
                    "the query would read its own {name}: {} is read by its source {}",
                    sink,
                    source.description()
                ))
                .with_hint("write to a place that none of the query's sources reads"));
            }
        }
    }
    Ok(())
}

/// Compares what the newest batch belonged to with what this run has. Where something [moved](crate::query::StreamWriter::moved),
/// `now` remembers from where.
pub(super) fn compare(old: &Belongings, now: &mut Belongings, moved: &[(String, String)]) -> Result<()> {
    let names = |sources: &[Option<Identity>]| {
        let mut names: Vec<String> =
            sources.iter().map(|s| s.as_ref().map_or("?".into(), Identity::to_string)).collect();
        names.sort();
        names
    };
    let mut found = vec![];
    let others: Vec<Option<Identity>> = old.sources.clone();
    let in_another_order = names(&old.sources) == names(&now.sources);
    for (number, (old, now)) in old.sources.iter().zip(&mut now.sources).enumerate() {
        let of_others: Vec<&Identity> =
            others.iter().enumerate().filter(|(other, _)| *other != number).filter_map(|(_, s)| s.as_ref()).collect();
        differ(&format!("source {number}"), old.as_ref(), now.as_mut(), &of_others, moved, &mut found);
    }
    let by_order = in_another_order && !found.is_empty();
    differ("the sink", old.output.as_ref(), now.output.as_mut(), &[], moved, &mut found);
    differ("the sink of dead letters", old.dead_letters.as_ref(), now.dead_letters.as_mut(), &[], moved, &mut found);
    let Some(first) = found.first() else { return Ok(()) };
    let differences: Vec<String> = found.iter().map(|d| format!("{} was {} and is {}", d.what, d.old, d.new)).collect();
    let hint = match by_order {
        true => {
            "the sources are the same in another order: name them in the order they had, or start with a new checkpoint"
                .to_owned()
        }
        false => format!(
            "put the query back as it was, or start the changed one with a new checkpoint; where the same data is at another \
             place now, say so: `.moved({:?}, {:?})`",
            first.old, first.new
        ),
    };
    Err(Error::new(
        ErrorKind::IncompatibleCheckpoint,
        format!("the checkpoint belongs to a query with other sources or sinks: {}", differences.join("; ")),
    )
    .with_hint(hint))
}

struct Difference {
    what: String,
    old: String,
    new: String,
}

fn differ(
    what: &str,
    old: Option<&Identity>,
    now: Option<&mut Identity>,
    others: &[&Identity],
    moved: &[(String, String)],
    found: &mut Vec<Difference>,
) {
    // One without an identity cannot be compared.
    let (Some(old), Some(now)) = (old, now) else { return };
    let same_but_place = old.kind == now.kind && old.options == now.options;
    let same = same_but_place
        && match old.passing && now.passing {
            true => old.place == now.place || !others.iter().any(|other| other.place == now.place),
            false => old.place == now.place,
        };
    if now.passing && old.passing && old.place != now.place {
        tracing::warn!(
            %what,
            "the checkpoint was written with another source in memory: as much of this one as was read of that one counts as read"
        );
    }
    let (was, is) = (old.to_string(), now.to_string());
    let named = |name: &str, whole: &str, place: &Option<String>| {
        name == whole || (same_but_place && place.as_deref() == Some(name))
    };
    let is_declared = moved.iter().any(|(from, to)| named(from, &was, &old.place) && named(to, &is, &now.place));
    now.formerly = old.formerly.clone();
    match (same, is_declared) {
        (true, _) => {}
        (false, true) => now.formerly.extend(old.place.clone().filter(|_| old.place != now.place)),
        (false, false) => found.push(Difference { what: what.to_owned(), old: was, new: is }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(sources: &[Identity]) -> Belongings {
        Belongings { sources: sources.iter().cloned().map(Some).collect(), ..Belongings::default() }
    }

    fn files(place: &str) -> Identity {
        Identity::new("csv files").at(place)
    }

    #[test]
    fn what_differs_is_named() {
        let (a, b) = (files("file:///a"), files("file:///b"));
        let kafka = Identity::new("kafka").at("a");
        for (old, new, moved, said) in [
            (vec![a.clone(), b.clone()], vec![a.clone(), b.clone()], None, None),
            (
                vec![a.clone()],
                vec![b.clone()],
                None,
                Some("source 0 was csv files at file:///a and is csv files at file:///b"),
            ),
            (vec![a.clone()], vec![b.clone()], Some(("file:///a", "file:///b")), None),
            (vec![a.clone()], vec![b.clone()], Some(("file:///a", "file:///c")), Some("source 0 was")),
            (vec![a.clone(), b.clone()], vec![b.clone(), a.clone()], None, Some("source 1 was csv files at file:///b")),
            (vec![a.clone()], vec![kafka.clone()], None, Some("and is kafka at a")),
            (vec![a.clone()], vec![kafka.clone()], Some(("file:///a", "a")), Some("and is kafka at a")),
            (vec![a.clone()], vec![kafka.clone()], Some(("csv files at file:///a", "kafka at a")), None),
            (vec![a.clone()], vec![a.clone().option("x", "1")], None, Some("(x: 1)")),
        ] {
            let moved: Vec<_> = moved.map(|(from, to)| (from.to_owned(), to.to_owned())).into_iter().collect();
            let found = compare(&reading(&old), &mut reading(&new), &moved);
            match said {
                None => found.unwrap(),
                Some(said) => {
                    let error = found.unwrap_err();
                    assert!(error.message().contains(said), "{error}");
                    assert_eq!(error.kind(), ErrorKind::IncompatibleCheckpoint);
                    assert_eq!(error.hint().unwrap().contains("another order"), old.len() == 2, "{error}");
                }
            }
        }
    }

    #[test]
    fn where_it_was_is_remembered() {
        let moved = [("file:///a".to_owned(), "file:///b".to_owned())];
        let mut now = reading(&[files("file:///b")]);
        compare(&reading(&[files("file:///a")]), &mut now, &moved).unwrap();
        let mut next = reading(&[files("file:///b")]);
        compare(&now, &mut next, &moved).unwrap();
        assert_eq!(next.sources[0].as_ref().unwrap().formerly, ["file:///a"]);
    }

    /// A memory source of the next process has another name; two of one process may change places.
    #[test]
    fn what_passes_is_told_apart_and_not_missed() {
        let memory = |name: &str| Identity::new("memory").in_process(name);
        let old = reading(&[memory("x1"), memory("x2")]);
        assert!(compare(&old, &mut reading(&[memory("y1"), memory("y2")]), &[]).is_ok());
        assert!(compare(&old, &mut reading(&[memory("x1"), memory("x2")]), &[]).is_ok());
        assert!(compare(&old, &mut reading(&[memory("x2"), memory("x1")]), &[]).is_err());
    }

    #[test]
    fn a_mode_that_would_miss_results_is_refused() {
        let written_in =
            |mode: &OutputMode| Belongings { aggregated_in: Some(mode.to_string()), ..Belongings::default() };
        let refused = |was, is, forgets| check_mode(&written_in(&was), &written_in(&is), forgets).is_err();
        use OutputMode::{Append, Complete, Update};
        for mode in [Append, Update, Complete] {
            assert!(!refused(mode, mode, true));
            assert!(check_mode(&Belongings::default(), &written_in(&mode), true).is_ok());
        }
        assert!(refused(Append, Update, true) && refused(Append, Complete, true) && refused(Update, Complete, true));
        assert!(
            !refused(Update, Complete, false) && !refused(Update, Append, true) && !refused(Complete, Update, true)
        );
    }

    #[test]
    fn what_does_not_tell_is_not_compared() {
        let silent = Belongings { sources: vec![None], ..Belongings::default() };
        assert!(compare(&silent, &mut reading(&[files("file:///a")]), &[]).is_ok());
        assert!(compare(&Belongings::default(), &mut reading(&[files("file:///a")]), &[]).is_ok());
    }
}
