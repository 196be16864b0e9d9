//! image from-host, list, delete.

use axum::http::Method;
use fabric::human;
use serde_json::json;

use super::args::ImageCommand;
use super::cluster::{list_all, list_query};
use super::error::CliError;
use super::output::{self, Row};
use super::progress::Progress;
use super::session::Session;
use crate::api::client::segment;
use crate::api::types::{CreateImage, Image};

impl Row for Image {
    const COLUMNS: &'static [&'static str] = &["name", "size", "digest", "created"];
    fn name(&self) -> String {
        self.name.clone()
    }
    fn cells(&self, now_ms: u64) -> Vec<String> {
        let digest = self.digest.chars().take(10).collect();
        vec![self.name.clone(), human::bytes(self.size_bytes), digest, human::age(now_ms, self.created_ms)]
    }
}

/// `image`.
pub async fn run(session: &mut Session, command: ImageCommand) -> Result<(), CliError> {
    let output = session.global.output;
    match command {
        ImageCommand::FromHost { name, paths } => {
            let progress = Progress::new(session.global.quiet);
            let verb = if session.global.dry_run { "looking at" } else { "packing" };
            progress.say(&format!("{verb} {}", paths.join(", ")));
            let path = session.tenant_path("images");
            let image: Image = session.write(Method::POST, &path, &CreateImage { name, from_host: paths }).await?;
            drop(progress);
            if session.global.dry_run {
                let size = human::bytes(image.size_bytes);
                session.say(&format!("image {} would hold {size} and be {}", image.name, image.digest));
            }
            output::one(output, &image, &image.name, || format!("{}\n", image.name))
        }
        ImageCommand::List(args) => {
            let path = session.tenant_path("images");
            output::list(output, &list_all::<Image>(session, &path, &list_query(&args)).await?)
        }
        ImageCommand::Delete { name } => {
            session.confirm(&format!("Delete the image {name} of tenant {}", session.global.tenant()))?;
            let path = session.tenant_path(&format!("images/{}", segment(&name)));
            session.write_only(Method::DELETE, &path, &json!({})).await?;
            session.say_done(&format!("image {name} is deleted"))
        }
    }
}
