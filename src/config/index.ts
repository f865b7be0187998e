export * from './config';
export { VARIABLES, type Environment } from './variables';
