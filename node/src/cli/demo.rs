//! demo.

use super::args::Global;
use super::error::CliError;
use super::output;
use crate::demo::{self, Options};

/// `demo`.
pub async fn run(global: &Global) -> Result<(), CliError> {
    let report = demo::run(Options { patience: global.timeout, quiet: global.quiet }).await?;
    output::one(global.output, &report, "demo", || {
        let left_out: String = report.left_out.iter().map(|words| format!("\n{words}\n")).collect();
        output::table(&["what", "took"], &report.rows()) + &left_out
    })
}
