-- Health of a LargeModelDeployment for Argo CD, from its conditions alone; docs/gitops.md says where this goes.
-- It agrees with kstatus, which Flux and `helm --wait` use: Reconciling and Stalled decide, and a status about an older
-- generation decides nothing. Only basic Lua is used: Argo CD opens few of its libraries.

local function health(status, message)
  return {status = status, message = message}
end

local status = obj.status
if status == nil or status.conditions == nil then
  return health("Progressing", "The operator has not looked at it yet.")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "The operator has not looked at the newest spec yet.")
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function is_true(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function words(kind)
  return conditions[kind].reason .. ": " .. conditions[kind].message
end

if is_true("Stalled") then
  return health("Degraded", words("Stalled"))
end
if is_true("Reconciling") then
  return health("Progressing", words("Reconciling"))
end
if is_true("Ready") then
  if conditions.Ready.reason == "Suspended" then
    return health("Suspended", words("Ready"))
  end
  return health("Healthy", words("Ready"))
end
if conditions.Ready == nil then
  return health("Progressing", "The operator has not said yet whether it is ready.")
end
return health("Progressing", words("Ready"))
