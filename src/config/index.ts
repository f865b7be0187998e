export * from './config';
export { VARIABLES } from './variables';
