# written by nova.py; edit conf/ec2_auth.py
"""A filter for ec2-api's paste pipeline: its own, but for a token of the service's with the question to keystone.

ec2-api 17.0.0, its last release, asks keystone anonymously whether a signature is right. Since CVE-2025-65073 keystone
answers that to services only, as it should.
"""

from __future__ import annotations

import hashlib
from typing import Any

import webob.dec
from ec2api import clients, context, wsgi
from ec2api.api import EC2KeystoneAuth, faults
from keystoneauth1 import access, session
from keystoneauth1.identity.access import AccessInfoPlugin
from oslo_config import cfg
from oslo_context.context import generate_request_id


class Auth(EC2KeystoneAuth):
    """Who has signed this request? What comes after is done with a token of that user's."""

    @webob.dec.wsgify(RequestClass=wsgi.Request)
    def __call__(self, req: Any) -> Any:
        """The request goes on with the context that ec2-api expects, or ends with AuthFailure."""
        number, body_hash = generate_request_id(), hashlib.sha256(req.body).hexdigest()  # params empties the body
        signed = dict(access=self._get_access(req), signature=self._get_signature(req), body_hash=body_hash)
        signed |= dict(host=req.host, verb=req.method, path=req.path, headers=dict(req.headers), params={})
        if "X-Amz-Signature" not in req.params and "Authorization" not in req.headers:
            signed["params"] = {name: value for name, value in req.params.items() if name != "Signature"}
        if not signed["access"] or not signed["signature"]:
            return faults.ec2_error_response(number, "AuthFailure", "Signature not provided", status=400)
        service, url = clients.get_os_admin_session(), cfg.CONF.keystone_ec2_tokens_url
        answer = service.post(url, json={"ec2Credentials": signed}, raise_exc=False)
        if answer.status_code != 200:
            return faults.ec2_error_response(number, "AuthFailure", answer.reason, status=answer.status_code)
        found = access.create(resp=answer)
        names = dict(user_name=found.username, project_name=found.project_name, remote_address=req.remote_addr)
        own = dict(session=session.Session(auth=AccessInfoPlugin(found)), api_version=req.params.get("Version"))
        req.environ["ec2api.context"] = context.RequestContext(found.user_id, found.project_id, number, **names, **own)
        return self.application
