//! Who may do what at this port. The ledger's leader checks again whatever becomes a command.

use fabric::model::Name;

use super::backend::{Backend, Caller, Read, Rights};
use super::failure::Failure;

const AS_OPERATOR: &str = "run it as root on a node with role voter, or name an operator's token by --token-file";

/// Operators only.
///
/// # Errors
/// `denied`.
pub fn operator(caller: &Caller) -> Result<(), Failure> {
    match caller.rights {
        Rights::Operator => Ok(()),
        _ => Err(Failure::denied(format!("{} is not an operator", caller.subject)).hint(AS_OPERATOR)),
    }
}

/// Reads of the cluster: operators and root of any node.
///
/// # Errors
/// `denied`.
pub fn cluster_read(caller: &Caller) -> Result<(), Failure> {
    match caller.rights {
        Rights::Operator | Rights::Node(_) => Ok(()),
        Rights::Tenant(_) => {
            Err(Failure::denied(format!("{} may not see the cluster", caller.subject)).hint(AS_OPERATOR))
        }
    }
}

/// The daemon itself: operators, and root of the node.
///
/// # Errors
/// `denied`.
pub fn this_node(caller: &Caller) -> Result<(), Failure> {
    cluster_read(caller)
}

/// Writes about a node: operators, and root of that node.
///
/// # Errors
/// `denied`; `not-found`.
pub async fn about_node(backend: &dyn Backend, caller: &Caller, node: &str) -> Result<(), Failure> {
    let Rights::Node(own) = caller.rights else { return operator(caller) };
    let read = Read { caller: caller.clone(), linearizable: false };
    if backend.node(&read, node).await?.item.record.id == own {
        return Ok(());
    }
    Err(Failure::denied(format!("{} may command that node alone, not {node:?}", caller.subject)).hint(AS_OPERATOR))
}

/// Everything of a tenant: operators, and tokens of it or of a tenant above it.
///
/// # Errors
/// `denied`.
pub fn tenant(backend: &dyn Backend, caller: &Caller, tenant: &Name) -> Result<(), Failure> {
    let allowed = match &caller.rights {
        Rights::Operator => true,
        Rights::Tenant(root) => root == tenant || backend.is_below(tenant, root),
        Rights::Node(_) => false,
    };
    if allowed {
        return Ok(());
    }
    Err(Failure::denied(format!("{} has no rights in tenant {tenant}", caller.subject)).hint(AS_OPERATOR))
}
