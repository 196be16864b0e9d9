//! The software's logs on standard error, each with simulated time and host.

use smartnode_sim::ambient;
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

struct WorldTime;

impl FormatTime for WorldTime {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        match ambient::place() {
            Some((now_us, host)) => write!(out, "{:>9} h{host}", now_us / 1000),
            None => write!(out, "{:>9} --", ""),
        }
    }
}

/// Starts logging from this level on.
pub fn start(level: Level) {
    ambient::allow_wall_clock_in_logs();
    tracing_subscriber::fmt().with_max_level(level).with_timer(WorldTime).with_writer(std::io::stderr).init();
}
