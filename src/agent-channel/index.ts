export * from './agent-channel.module';
export { agentErrors } from './errors-rest';
