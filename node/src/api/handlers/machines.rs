//! Machines, but for their streams.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fabric::model::{self, Name};

use super::Shared;
use crate::api::backend::{MachineView, Query, Read, Write};
use crate::api::extract::{At, Input, ListParams, Params, ReadParams, WaitParams, WriteParams, names};
use crate::api::failure::Failure;
use crate::api::respond::{Accepted, Tagged};
use crate::api::rights;
use crate::api::types::*;
use crate::api::waiting::{self, Waiter, Wanted};

type Result<T> = std::result::Result<T, Failure>;

/// The names of the path, once the caller has rights there.
fn at(shared: &Shared, caller: &crate::api::backend::Caller, path: (String, String)) -> Result<(Name, Name)> {
    let (tenant, name) = names(&path.0, "machine", &path.1)?;
    rights::tenant(&*shared.backend, caller, &tenant)?;
    Ok((tenant, name))
}

fn tagged(view: MachineView) -> Tagged<Machine> {
    Tagged::ok(view.record.revision, view.into())
}

/// A tenant's machines by name.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/machines", tag = "machines",
    params(ListParams, ReadParams, ("tenant" = String, Path)), responses((status = 200, body = List<Machine>)))]
pub async fn list(
    State(shared): State<Shared>,
    read: Read,
    query: Query,
    At(tenant): At<String>,
) -> Result<Json<List<Machine>>> {
    let tenant = parse_name("tenant", &tenant)?;
    rights::tenant(&*shared.backend, &read.caller, &tenant)?;
    let page = shared.backend.list_machines(&read, &tenant, &query).await?;
    Ok(Json(List::of(page, |view| view.record.name.to_string())))
}

/// Make a machine and find it a place.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines", tag = "machines", request_body = CreateMachine,
    params(WriteParams, ("tenant" = String, Path)),
    responses((status = 201, body = Machine), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub async fn create(
    State(shared): State<Shared>,
    write: Write,
    At(tenant): At<String>,
    Input(machine): Input<CreateMachine>,
) -> Result<Tagged<Machine>> {
    let tenant = parse_name("tenant", &tenant)?;
    rights::tenant(&*shared.backend, &write.caller, &tenant)?;
    let pinned = match &machine.spec.node {
        Some(node) => {
            let read = Read { caller: write.caller.clone(), linearizable: false };
            Some(shared.backend.node(&read, node).await?.item.record.id)
        }
        None => None,
    };
    let view = shared.backend.create_machine(&write, &tenant, machine.into_domain(pinned)?).await?;
    Ok(Tagged::created(write.dry_run, view.record.revision, view.into()))
}

/// One machine; with `wait`, once it is so (204 when it is gone as wanted).
#[utoipa::path(get, path = "/v1/tenants/{tenant}/machines/{name}", tag = "machines",
    params(ReadParams, WaitParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Answer<Machine>), (status = 204, description = "Gone, as wanted"),
        (status = 404, body = Problem), (status = 409, description = "It will not get there", body = Problem),
        (status = 504, description = "Not yet", body = Problem)))]
pub async fn inspect(
    State(shared): State<Shared>,
    read: Read,
    params: Params,
    At(path): At<(String, String)>,
) -> Result<Response> {
    let (tenant, name) = at(&shared, &read.caller, path)?;
    let backend = &*shared.backend;
    let answer = |one: crate::api::backend::One<MachineView>| {
        Tagged::ok(one.item.record.revision, Answer::<Machine>::of(one)).into_response()
    };
    let Some(wanted) = params.get::<Wanted>("wait", "running, stopped or gone")? else {
        return Ok(answer(backend.machine(&read, &tenant, &name).await?));
    };
    let mut waiter = Waiter::new(backend, params.patience()?);
    loop {
        let asked = backend.machine(&read, &tenant, &name).await;
        if wanted == Wanted::Gone && waiting::is_gone(&asked) {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let one = asked?;
        match waiting::machine(wanted, &one.item)? {
            None => return Ok(answer(one)),
            Some(reason) => waiter.again(&reason).await?,
        }
    }
}

/// Change a machine's labels.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}/machines/{name}", tag = "machines", request_body = UpdateMachine,
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Machine), (status = 412, body = Problem), (status = 422, body = Problem)))]
pub async fn update(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
    Input(update): Input<UpdateMachine>,
) -> Result<Tagged<Machine>> {
    let (tenant, name) = at(&shared, &write.caller, path)?;
    model::check::labels(&update.labels)?;
    Ok(tagged(shared.backend.update_labels(&write, &tenant, &name, update.labels).await?))
}

async fn desire(shared: Shared, write: Write, path: (String, String), desired: model::Desired) -> Result<MachineView> {
    let (tenant, name) = at(&shared, &write.caller, path)?;
    shared.backend.set_desired(&write, &tenant, &name, desired).await
}

/// Delete a machine and its disk.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/machines/{name}", tag = "machines",
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 202, description = "Its node destroys it", body = Machine), (status = 404, body = Problem)))]
pub async fn delete(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
) -> Result<Tagged<Machine>> {
    let view = desire(shared, write, path, model::Desired::Deleted).await?;
    Ok(Tagged { status: StatusCode::ACCEPTED, revision: view.record.revision, body: view.into() })
}

/// Start a machine.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/start", tag = "machines",
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem)))]
pub async fn start(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
) -> Result<Tagged<Machine>> {
    Ok(tagged(desire(shared, write, path, model::Desired::Running).await?))
}

/// Stop a machine; its disk stays.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/stop", tag = "machines",
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem)))]
pub async fn stop(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
) -> Result<Tagged<Machine>> {
    Ok(tagged(desire(shared, write, path, model::Desired::Stopped).await?))
}

/// Stop and start a machine once.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/restart", tag = "machines",
    params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Machine), (status = 404, body = Problem)))]
pub async fn restart(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
) -> Result<Tagged<Machine>> {
    let (tenant, name) = at(&shared, &write.caller, path)?;
    Ok(tagged(shared.backend.restart(&write, &tenant, &name).await?))
}

/// Move a machine to another node.
///
/// A repeated `Idempotency-Key` moves nothing again, through whichever node it comes, also when the machine is where it was
/// to go by then. It gets the operation that it began, or, where that is not known any more, one that ends as the move does.
/// What failed before its move had begun is tried again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/machines/{name}/move", tag = "machines",
    request_body = MoveMachine, params(WriteParams, ("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = Operation), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub async fn relocate(
    State(shared): State<Shared>,
    write: Write,
    At(path): At<(String, String)>,
    Input(relocation): Input<MoveMachine>,
) -> Result<Accepted> {
    let (tenant, name) = at(&shared, &write.caller, path)?;
    let view = shared.backend.move_machine(&write, &tenant, &name, relocation.to.as_deref()).await?;
    Ok(Accepted(view.into()))
}
