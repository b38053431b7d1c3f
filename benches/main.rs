//! The figures of `benches/README.md`. Run one with `cargo bench --bench bench -- one_row`; without a name, those that
//! take no more than minutes.

mod files;
mod kafka;
mod made;
mod many;
mod one_row;
mod scan;
mod soak;
mod state_cost;
mod text_state;

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start tokio: {error}");
            return ExitCode::FAILURE;
        }
    };
    let child = match wanted.first().map(String::as_str) {
        Some(state_cost::CHILD) => Some(runtime.block_on(state_cost::run_child(&wanted))),
        Some(text_state::CHILD) => Some(runtime.block_on(text_state::run_child(&wanted))),
        _ => None,
    };
    if let Some(outcome) = child {
        return match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", wanted.join(" "));
                ExitCode::FAILURE
            }
        };
    }
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mut failed = false;
    let mut show = |name: &str, outcome: Result<(), Box<dyn std::error::Error>>| {
        if let Err(error) = outcome {
            eprintln!("{name}: {error}");
            failed = true;
        }
    };
    if chosen("one_row") {
        show("one_row", runtime.block_on(one_row::run()));
    }
    if chosen("scan") {
        show("scan", runtime.block_on(scan::run()));
    }
    if chosen("state") {
        show("state", state_cost::run());
    }
    if chosen("files") {
        show("files", runtime.block_on(files::run()));
    }
    if chosen("many") {
        show("many", runtime.block_on(many::run()));
    }
    // These need a broker, or long, or much memory: only by their names.
    if wanted.iter().any(|name| name == "text_state") {
        show("text_state", text_state::run());
    }
    if wanted.iter().any(|name| name == "kafka") {
        show("kafka", runtime.block_on(kafka::run(&wanted)));
    }
    if wanted.iter().any(|name| name == "soak") {
        show("soak", runtime.block_on(soak::run()));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The value below which `share` of the sorted values lie.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}
